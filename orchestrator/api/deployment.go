package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// deployBody asks for a deployment, or a plan of one.
type deployBody struct {
	Bundle        string        `json:"bundle" maxLength:"63" doc:"Bundle name"`
	BundleVersion string        `json:"bundle_version" maxLength:"127"`
	TargetDevices []string      `json:"target_devices,omitempty" maxItems:"20000" doc:"Device ids; or else a selector"`
	Selector      *string       `json:"selector,omitempty" maxLength:"4096" doc:"Labels; the empty selector is the whole fleet"`
	Description   string        `json:"description,omitempty"`
	Rollout       fleet.Rollout `json:"rollout,omitempty"`
}

type deployIn struct {
	Body deployBody
}

type deploymentsIn struct {
	PageParams
	Status string `query:"status" enum:"pending,awaiting_approval,in_progress,paused,success,failed,cancelled"`
}

type targetsIn struct {
	IDParam
	PageParams
	State string `query:"state" enum:"pending,offered,accepted,downloading,installing,verifying,succeeded,failed,rolled_back,rejected,cancelled,timed_out,expired,superseded"`
}

type rollbackIn struct {
	Body struct {
		BundleVersion   string   `json:"bundle_version" maxLength:"127"`
		TargetDeviceIDs []string `json:"target_device_ids" maxItems:"20000"`
		Bundle          string   `json:"bundle,omitempty" maxLength:"63" doc:"Bundle name; empty: whichever had that version on the device"`
		Description     string   `json:"description,omitempty"`
	}
}

type undoIn struct {
	IDParam
	Body *struct {
		TargetVersion string `json:"target_version,omitempty" maxLength:"127" doc:"Version to go to; empty: what each device had before"`
	}
}

func (a *API) registerDeployments() {
	tags := []string{"deployments"}
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "create-deployment", Method: http.MethodPost, Path: "/deployments", Summary: "Deploy a bundle", Tags: tags, DefaultStatus: http.StatusCreated}, a.deploy)
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "plan-deployment", Method: http.MethodPost, Path: "/deployments/plan", Summary: "What a deployment would do; nothing is stored", Tags: tags}, a.plan)
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "list-deployments", Method: http.MethodGet, Path: "/deployments", Summary: "List deployments, newest first", Tags: tags}, a.listDeployments)
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "get-deployment", Method: http.MethodGet, Path: "/deployments/{id}", Summary: "Read one deployment with its progress", Tags: tags}, a.getDeployment)
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "list-targets", Method: http.MethodGet, Path: "/deployments/{id}/targets", Summary: "Where each device stands", Tags: tags}, a.targets)
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "cancel-deployment", Method: http.MethodPost, Path: "/deployments/{id}/cancel", Summary: "End a deployment", Tags: tags}, a.cancel)
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "retry-deployment", Method: http.MethodPost, Path: "/deployments/{id}/retry", Summary: "Deploy again to the devices on which it did not succeed", Tags: tags, DefaultStatus: http.StatusCreated}, a.retry)
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "rollback-deployment", Method: http.MethodPost, Path: "/deployments/{id}/rollback", Summary: "Undo a deployment that has ended", Tags: tags, DefaultStatus: http.StatusCreated}, a.undo)
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "rollback-devices", Method: http.MethodPost, Path: "/devices/rollback", Summary: "Take devices back to a version that each of them has run", Tags: tags, DefaultStatus: http.StatusCreated}, a.rollback)
}

func (b deployBody) request(c caller) (fleet.DeploymentRequest, error) {
	r := fleet.DeploymentRequest{Bundle: b.Bundle, Version: b.BundleVersion, Devices: b.TargetDevices, Scope: c.scope, Description: b.Description, Rollout: b.Rollout}
	if err := fleet.Text("description", b.Description, 1024); err != nil {
		return r, err
	}
	if err := checkIDs("target_devices", b.TargetDevices); err != nil {
		return r, err
	}
	switch {
	case b.Selector != nil && len(b.TargetDevices) > 0:
		return r, fleet.Errorf(fleet.CodeInvalid, "name target_devices or a selector, not both")
	case b.Selector == nil && len(b.TargetDevices) == 0:
		return r, fleet.Errorf(fleet.CodeInvalid, "a deployment needs target_devices or a selector")
	case b.Selector != nil:
		sel, err := fleet.ParseSelector(*b.Selector)
		if err != nil {
			return r, err
		}
		r.Selector = &sel
	}
	return r, b.Rollout.Validate()
}

// checkIDs refuses what cannot be a device id before anybody looks for it.
func checkIDs(name string, ids []string) error {
	for _, id := range ids {
		if !fleet.ValidDeviceID(id) {
			return fleet.Errorf(fleet.CodeInvalid, "%s: %.80q is no device id", name, id)
		}
	}
	return nil
}

func deployment(d fleet.Deployment, err error) (*out[fleet.Deployment], error) {
	return &out[fleet.Deployment]{Body: d}, err
}

func (a *API) deploy(ctx context.Context, c caller, in *deployIn) (*out[fleet.Deployment], error) {
	r, err := in.Body.request(c)
	if err != nil {
		return nil, err
	}
	return deployment(a.cfg.Store.CreateDeployment(ctx, r, c.actor))
}

func (a *API) plan(ctx context.Context, c caller, in *deployIn) (*out[fleet.Plan], error) {
	r, err := in.Body.request(c)
	if err != nil {
		return nil, err
	}
	p, err := a.cfg.Store.PlanDeployment(ctx, r)
	return &out[fleet.Plan]{Body: p}, err
}

func (a *API) listDeployments(ctx context.Context, c caller, in *deploymentsIn) (*out[fleet.List[fleet.Deployment]], error) {
	l, err := a.cfg.Store.Deployments(ctx, fleet.DeploymentFilter{Scope: c.scope, Status: fleet.DeploymentStatus(in.Status)}, in.page())
	return &out[fleet.List[fleet.Deployment]]{Body: l}, err
}

func (a *API) getDeployment(ctx context.Context, c caller, in *IDParam) (*out[fleet.Deployment], error) {
	return deployment(a.cfg.Store.Deployment(ctx, in.ID, c.scope))
}

func (a *API) targets(ctx context.Context, c caller, in *targetsIn) (*out[fleet.List[fleet.Target]], error) {
	l, err := a.cfg.Store.Targets(ctx, in.ID, c.scope, fleet.TargetState(in.State), in.page())
	return &out[fleet.List[fleet.Target]]{Body: l}, err
}

func (a *API) cancel(ctx context.Context, c caller, in *IDParam) (*out[fleet.Deployment], error) {
	return deployment(a.cfg.Store.CancelDeployment(ctx, in.ID, c.scope, c.actor))
}

func (a *API) retry(ctx context.Context, c caller, in *IDParam) (*out[fleet.Deployment], error) {
	return deployment(a.cfg.Store.RetryDeployment(ctx, in.ID, c.scope, c.actor))
}

func (a *API) undo(ctx context.Context, c caller, in *undoIn) (*out[fleet.Deployment], error) {
	version := ""
	if in.Body != nil {
		version = in.Body.TargetVersion
	}
	return deployment(a.cfg.Store.RollbackDeployment(ctx, in.ID, version, c.scope, c.actor))
}

func (a *API) rollback(ctx context.Context, c caller, in *rollbackIn) (*out[fleet.Deployment], error) {
	if err := checkIDs("target_device_ids", in.Body.TargetDeviceIDs); err != nil {
		return nil, err
	}
	if err := fleet.Text("description", in.Body.Description, 1024); err != nil {
		return nil, err
	}
	return deployment(a.cfg.Store.RollbackDevices(ctx, fleet.RollbackRequest{
		Bundle: in.Body.Bundle, Version: in.Body.BundleVersion, Devices: in.Body.TargetDeviceIDs, Scope: c.scope, Description: in.Body.Description,
	}, c.actor))
}
