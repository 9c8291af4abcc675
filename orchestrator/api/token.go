package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
)

type newTokenIn struct {
	Body struct {
		Name      string     `json:"name" minLength:"1" maxLength:"127"`
		Role      fleet.Role `json:"role" enum:"viewer,operator,admin,monitor,service"`
		Selector  string     `json:"selector,omitempty" maxLength:"4096" doc:"Label scope; empty is the whole fleet"`
		ExpiresAt *time.Time `json:"expires_at,omitempty"`
	}
}

// newToken is a new API token with its secret, which is shown this once.
type newToken struct {
	fleet.APIToken
	Token string `json:"token" doc:"The secret, shown this once"`
}

type newEnrollmentTokenIn struct {
	Body struct {
		Description string       `json:"description,omitempty"`
		Labels      fleet.Labels `json:"labels,omitempty" doc:"Labels of the devices that enrol with it"`
		Group       string       `json:"group,omitempty" maxLength:"63" doc:"Short for the label group"`
		Serials     []string     `json:"serials,omitempty" maxItems:"10000" doc:"Only these serials; empty is any"`
		MaxUses     *int         `json:"max_uses,omitempty" doc:"Devices that may use it; 0 is without a limit; default 1"`
		AutoApprove *bool        `json:"auto_approve,omitempty" doc:"Active at once instead of pending; default true"`
		ExpiresAt   *time.Time   `json:"expires_at,omitempty"`
	}
}

// newEnrollmentToken is a new claim token with its secret, which is shown this
// once.
type newEnrollmentToken struct {
	fleet.EnrollmentToken
	Token string `json:"token" doc:"The secret, shown this once"`
}

func (a *API) registerTokens() {
	tags := []string{"access"}
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "list-tokens", Method: http.MethodGet, Path: "/tokens", Summary: "List API tokens, newest first", Tags: tags}, a.listTokens)
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "create-token", Method: http.MethodPost, Path: "/tokens", Summary: "Make an API token", Tags: tags, DefaultStatus: http.StatusCreated,
		Description: "A repeat with the same Idempotency-Key answers without the secret."}, a.createToken)
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "revoke-token", Method: http.MethodDelete, Path: "/tokens/{id}", Summary: "End an API token", Tags: tags, DefaultStatus: http.StatusNoContent}, a.revokeToken)
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "list-enrollment-tokens", Method: http.MethodGet, Path: "/enrollment-tokens", Summary: "List claim tokens, newest first", Tags: tags}, a.listEnrollmentTokens)
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "create-enrollment-token", Method: http.MethodPost, Path: "/enrollment-tokens", Summary: "Make a claim token", Tags: tags, DefaultStatus: http.StatusCreated,
		Description: "A repeat with the same Idempotency-Key answers without the secret."}, a.createEnrollmentToken)
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "revoke-enrollment-token", Method: http.MethodDelete, Path: "/enrollment-tokens/{id}", Summary: "End a claim token; devices that used it stay", Tags: tags, DefaultStatus: http.StatusNoContent}, a.revokeEnrollmentToken)
}

// wholeFleet refuses a caller with a scope what is not about single devices.
func wholeFleet(c caller, what string) error {
	if len(c.scope) == 0 {
		return nil
	}
	return fleet.Errorf(fleet.CodeForbidden, "%s needs a token without a scope, this one has %s", what, c.scope)
}

func (a *API) listTokens(ctx context.Context, c caller, in *PageParams) (*out[fleet.List[fleet.APIToken]], error) {
	if err := wholeFleet(c, "listing tokens"); err != nil {
		return nil, err
	}
	l, err := a.cfg.Store.Tokens(ctx, in.page())
	return &out[fleet.List[fleet.APIToken]]{Body: l}, err
}

func (a *API) createToken(ctx context.Context, c caller, in *newTokenIn) (*out[newToken], error) {
	// A scoped admin could give itself more with a token of another scope.
	if err := wholeFleet(c, "making tokens"); err != nil {
		return nil, err
	}
	sel, err := fleet.ParseSelector(in.Body.Selector)
	if err != nil {
		return nil, err
	}
	n := fleet.NewToken{Name: in.Body.Name, Role: in.Body.Role, Selector: sel, ExpiresAt: in.Body.ExpiresAt}
	if err := n.Validate(); err != nil {
		return nil, err
	}
	t, secret, err := a.cfg.Store.CreateToken(ctx, n, c.actor)
	return &out[newToken]{Body: newToken{APIToken: t, Token: secret}}, err
}

func (a *API) revokeToken(ctx context.Context, c caller, in *IDParam) (*none, error) {
	if err := wholeFleet(c, "revoking tokens"); err != nil {
		return nil, err
	}
	return nil, a.cfg.Store.RevokeToken(ctx, in.ID, c.actor)
}

func (a *API) listEnrollmentTokens(ctx context.Context, c caller, in *PageParams) (*out[fleet.List[fleet.EnrollmentToken]], error) {
	l, err := a.cfg.Store.EnrollmentTokens(ctx, c.scope, in.page())
	return &out[fleet.List[fleet.EnrollmentToken]]{Body: l}, err
}

func (a *API) createEnrollmentToken(ctx context.Context, c caller, in *newEnrollmentTokenIn) (*out[newEnrollmentToken], error) {
	n := fleet.NewEnrollmentToken{
		Description: in.Body.Description, Labels: fleet.Labels{}, Serials: in.Body.Serials, MaxUses: 1, AutoApprove: true, ExpiresAt: in.Body.ExpiresAt,
	}
	for k, v := range in.Body.Labels {
		n.Labels[k] = v
	}
	if in.Body.Group != "" {
		n.Labels["group"] = in.Body.Group
	}
	if in.Body.MaxUses != nil {
		n.MaxUses = *in.Body.MaxUses
	}
	if in.Body.AutoApprove != nil {
		n.AutoApprove = *in.Body.AutoApprove
	}
	if err := n.Validate(); err != nil {
		return nil, err
	}
	if !c.scope.Matches(n.Labels) {
		return nil, fleet.Errorf(fleet.CodeForbidden, "the labels %q are outside of this token's scope %s", n.Labels.String(), c.scope)
	}
	t, secret, err := a.cfg.Store.CreateEnrollmentToken(ctx, n, c.actor)
	return &out[newEnrollmentToken]{Body: newEnrollmentToken{EnrollmentToken: t, Token: secret}}, err
}

func (a *API) revokeEnrollmentToken(ctx context.Context, c caller, in *IDParam) (*none, error) {
	return nil, a.cfg.Store.RevokeEnrollmentToken(ctx, in.ID, c.scope, c.actor)
}
