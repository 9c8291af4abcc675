package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
)

type logsIn struct {
	IDParam
	PageParams
	Level string    `query:"level" enum:"debug,info,warn,error" doc:"This level and worse; a line without one counts as info"`
	From  time.Time `query:"from" doc:"Oldest line, by the device's clock"`
	To    time.Time `query:"to" doc:"Lines before this, by the device's clock"`
	After string    `query:"after" maxLength:"20" doc:"Id of a line: gives those that came after it, oldest first and without a total; for whoever follows"`
}

type askLogsIn struct {
	IDParam
	Body fleet.LogRequest
}

func (a *API) registerLogs() {
	tags := []string{"logs"}
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "list-logs", Method: http.MethodGet, Path: "/devices/{id}/logs", Summary: "Lines that the device has sent, newest first", Tags: tags,
		Description: "Devices send lines of their bundle's program only when they are asked to. Lines are kept for a week."}, a.listLogs)
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "ask-logs", Method: http.MethodPost, Path: "/devices/{id}/logs", Summary: "Make a device send lines", Tags: tags, DefaultStatus: http.StatusAccepted,
		Description: "Within some hundred KiB a minute; what is beyond it is left out and counted. 409 unless the device is online."}, a.askLogs)
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "restart-program", Method: http.MethodPost, Path: "/devices/{id}/restart", Summary: "Start the bundle's program anew", Tags: []string{"devices"}, DefaultStatus: http.StatusAccepted,
		Description: "Also one that its restart policy has given up. 409 unless the device is online."}, a.restart)
}

func (a *API) listLogs(ctx context.Context, c caller, in *logsIn) (*out[fleet.List[fleet.LogLine]], error) {
	f := fleet.LogFilter{Level: in.Level, From: in.From, To: in.To, After: in.After}
	l, err := a.cfg.Store.Logs(ctx, in.ID, c.scope, f, in.page())
	return &out[fleet.List[fleet.LogLine]]{Body: l}, err
}

func (a *API) askLogs(ctx context.Context, c caller, in *askLogsIn) (*out[fleet.CommandRef], error) {
	if in.Body.Lines == 0 && in.Body.FollowS == 0 {
		return nil, fleet.Errorf(fleet.CodeInvalid, "ask for lines, or for follow_s seconds of what comes")
	}
	r, err := a.cfg.Store.AskLogs(ctx, in.ID, in.Body, c.scope, c.actor)
	return &out[fleet.CommandRef]{Body: r}, err
}

func (a *API) restart(ctx context.Context, c caller, in *IDParam) (*out[fleet.CommandRef], error) {
	r, err := a.cfg.Store.RestartProgram(ctx, in.ID, c.scope, c.actor)
	return &out[fleet.CommandRef]{Body: r}, err
}
