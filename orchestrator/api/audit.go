package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
)

type auditIn struct {
	PageParams
	Actor   string `query:"actor" maxLength:"255"`
	Action  string `query:"action" maxLength:"63" doc:"As in deployment.create"`
	Subject string `query:"subject" maxLength:"127" doc:"Id of what was changed"`
}

func (a *API) registerAudit() {
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "list-audit", Method: http.MethodGet, Path: "/audit", Summary: "Every change, newest first", Tags: []string{"access"}}, a.audit)
}

func (a *API) audit(ctx context.Context, c caller, in *auditIn) (*out[fleet.List[fleet.AuditEntry]], error) {
	if err := wholeFleet(c, "the audit log"); err != nil {
		return nil, err
	}
	l, err := a.cfg.Store.Audit(ctx, fleet.AuditFilter{Actor: in.Actor, Action: in.Action, Subject: in.Subject}, in.page())
	return &out[fleet.List[fleet.AuditEntry]]{Body: l}, err
}
