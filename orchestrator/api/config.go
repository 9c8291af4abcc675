package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
)

type putConfigIn struct {
	IDParam
	IfMatch string `header:"If-Match" maxLength:"64" doc:"The ETag of the version to change; another one is refused with 412"`
	Body    fleet.ConfigPatch
}

type putConfigsIn struct {
	Selector string `query:"selector" required:"true" maxLength:"4096" doc:"Devices to change, by labels"`
	Body     fleet.ConfigPatch
}

func (a *API) registerConfig() {
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "get-config", Method: http.MethodGet, Path: "/devices/{id}/config", Summary: "A device's configuration and what the device made of it", Tags: []string{"configuration"}}, a.getConfig)
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "set-config", Method: http.MethodPut, Path: "/devices/{id}/config", Summary: "Change a device's configuration", Tags: []string{"configuration"},
		Description: "Absent keys keep their values; metadata is replaced as a whole. A change makes version + 1, equal content keeps the version."}, a.putConfig)
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "config-history", Method: http.MethodGet, Path: "/devices/{id}/config/history", Summary: "Versions of the configuration, newest first", Tags: []string{"configuration"}}, a.configHistory)
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "set-configs", Method: http.MethodPut, Path: "/config", Summary: "Change the configuration of many devices", Tags: []string{"configuration"}}, a.putConfigs)
}

func configAnswer(c fleet.DeviceConfig, err error) (*outETag[fleet.DeviceConfig], error) {
	return &outETag[fleet.DeviceConfig]{ETag: `"` + strconv.FormatInt(c.Version, 10) + `"`, Body: c}, err
}

func (a *API) getConfig(ctx context.Context, c caller, in *IDParam) (*outETag[fleet.DeviceConfig], error) {
	return configAnswer(a.cfg.Store.DeviceConfig(ctx, in.ID, c.scope))
}

// ifVersion reads If-Match: absent or * is any version (0).
func ifVersion(s string) (int64, error) {
	s = strings.TrimSpace(s)
	if s == "" || s == "*" {
		return 0, nil
	}
	v, err := strconv.ParseInt(strings.Trim(s, `"`), 10, 64)
	if err != nil || v < 1 || len(s) < 3 || s[0] != '"' || s[len(s)-1] != '"' {
		return 0, fleet.Errorf(fleet.CodeStale, "If-Match %.64q is no ETag of a configuration, which looks like \"3\"", s)
	}
	return v, nil
}

func (a *API) putConfig(ctx context.Context, c caller, in *putConfigIn) (*outETag[fleet.DeviceConfig], error) {
	version, err := ifVersion(in.IfMatch)
	if err != nil {
		return nil, err
	}
	if err := in.Body.Apply(fleet.DefaultConfig()).Validate(); err != nil {
		return nil, err
	}
	return configAnswer(a.cfg.Store.SetDeviceConfig(ctx, in.ID, in.Body, version, c.scope, c.actor))
}

func (a *API) configHistory(ctx context.Context, c caller, in *historyIn) (*out[fleet.List[fleet.ConfigVersion]], error) {
	l, err := a.cfg.Store.ConfigHistory(ctx, in.ID, c.scope, in.page())
	return &out[fleet.List[fleet.ConfigVersion]]{Body: l}, err
}

func (a *API) putConfigs(ctx context.Context, c caller, in *putConfigsIn) (*out[fleet.ConfigChange], error) {
	sel, err := fleet.ParseSelector(in.Selector)
	if err != nil {
		return nil, err
	}
	if err := in.Body.Apply(fleet.DefaultConfig()).Validate(); err != nil {
		return nil, err
	}
	change, err := a.cfg.Store.SetConfigs(ctx, fleet.DeviceFilter{Scope: c.scope, Selector: sel}, in.Body, c.actor)
	return &out[fleet.ConfigChange]{Body: change}, err
}
