package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
)

type newReleaseKeyIn struct {
	Body struct {
		PublicKey   string `json:"public_key" minLength:"1" maxLength:"512" doc:"A minisign .pub file, or its one line"`
		Signature   string `json:"signature,omitempty" maxLength:"4096" doc:"minisign over the exact bytes of public_key, by a release key that counts; the first key needs none"`
		Description string `json:"description,omitempty"`
	}
}

func (a *API) registerReleaseKeys() {
	tags := []string{"trust"}
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "list-release-keys", Method: http.MethodGet, Path: "/release-keys", Summary: "The trust mode and the keys that sign bundles, in the order in which they were added", Tags: tags}, a.listReleaseKeys)
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "add-release-key", Method: http.MethodPost, Path: "/release-keys", Summary: "Add a key that signs bundles", Tags: tags, DefaultStatus: http.StatusCreated,
		Description: "The first key makes the trust mode required, for good. Each further key must be signed by one that counts. The same key again answers 200."}, a.addReleaseKey)
	register(a, fleet.RoleAdmin, huma.Operation{OperationID: "revoke-release-key", Method: http.MethodDelete, Path: "/release-keys/{id}", Summary: "End a release key, for good; the last one stays", Tags: tags, DefaultStatus: http.StatusNoContent}, a.revokeReleaseKey)
}

func (a *API) listReleaseKeys(ctx context.Context, _ caller, _ *none) (*out[fleet.ReleaseKeys], error) {
	k, err := a.cfg.Store.ReleaseKeys(ctx)
	return &out[fleet.ReleaseKeys]{Body: k}, err
}

func (a *API) addReleaseKey(ctx context.Context, c caller, in *newReleaseKeyIn) (*outStatus[fleet.ReleaseKey], error) {
	if err := wholeFleet(c, "changing release keys"); err != nil {
		return nil, err
	}
	if err := fleet.Text("description", in.Body.Description, 255); err != nil {
		return nil, err
	}
	k, created, err := a.cfg.Store.AddReleaseKey(ctx, fleet.NewReleaseKey{File: in.Body.PublicKey, Signature: in.Body.Signature, Description: in.Body.Description}, c.actor)
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	return &outStatus[fleet.ReleaseKey]{Status: status, Body: k}, err
}

func (a *API) revokeReleaseKey(ctx context.Context, c caller, in *IDParam) (*none, error) {
	if err := wholeFleet(c, "changing release keys"); err != nil {
		return nil, err
	}
	return nil, a.cfg.Store.RevokeReleaseKey(ctx, in.ID, c.actor)
}
