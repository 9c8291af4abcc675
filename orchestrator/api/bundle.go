package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
)

type bundlesIn struct {
	PageParams
	Name string `query:"name" maxLength:"63"`
}

type verifyIn struct {
	IDParam
	Body struct {
		Checksum string `json:"checksum_sha256" pattern:"^[0-9a-fA-F]{64}$" doc:"SHA-256 that the archive should have, hex"`
	}
}

type verifyOut struct {
	Valid    bool   `json:"valid"`
	Checksum string `json:"checksum_sha256" doc:"What the store's bytes have"`
}

type locationOut struct {
	Location     string `header:"Location"`
	CacheControl string `header:"Cache-Control"`
}

// downloadTTL is how long a download's URL may be used to begin.
const downloadTTL = 5 * time.Minute

func (a *API) registerBundles() {
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "list-bundles", Method: http.MethodGet, Path: "/bundles", Summary: "List bundles, newest first", Tags: []string{"bundles"}}, a.listBundles)
	a.registerUpload()
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "get-bundle", Method: http.MethodGet, Path: "/bundles/{id}", Summary: "Read one bundle with its manifest", Tags: []string{"bundles"}}, a.getBundle)
	register(a, fleet.RoleOperator, huma.Operation{OperationID: "delete-bundle", Method: http.MethodDelete, Path: "/bundles/{id}", Summary: "Delete a bundle that nothing uses", Tags: []string{"bundles"}, DefaultStatus: http.StatusNoContent}, a.deleteBundle)
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "download-bundle", Method: http.MethodGet, Path: "/bundles/{id}/download", Summary: "Where the archive is for a few minutes", Tags: []string{"bundles"}, DefaultStatus: http.StatusFound}, a.downloadBundle)
	register(a, fleet.RoleViewer, huma.Operation{OperationID: "verify-bundle", Method: http.MethodPost, Path: "/bundles/{id}/verify", Summary: "Read the archive from the store and compare its digest", Tags: []string{"bundles"}}, a.verifyBundle)
}

func (a *API) listBundles(ctx context.Context, _ caller, in *bundlesIn) (*out[fleet.List[fleet.Bundle]], error) {
	l, err := a.cfg.Store.Bundles(ctx, in.Name, in.page())
	return &out[fleet.List[fleet.Bundle]]{Body: l}, err
}

func (a *API) getBundle(ctx context.Context, _ caller, in *IDParam) (*out[fleet.Bundle], error) {
	b, err := a.cfg.Store.Bundle(ctx, in.ID)
	return &out[fleet.Bundle]{Body: b}, err
}

// deleteBundle removes the row first: an object without a row is swept later,
// a row without its object would break a deployment.
func (a *API) deleteBundle(ctx context.Context, c caller, in *IDParam) (*none, error) {
	if len(c.scope) > 0 {
		return nil, fleet.Errorf(fleet.CodeForbidden, "bundles belong to the whole fleet: a token with a scope may not delete them")
	}
	b, err := a.cfg.Store.DeleteBundle(ctx, in.ID, c.actor)
	if err != nil {
		return nil, err
	}
	a.discard(ctx, b.ObjectKey)
	return nil, nil
}

// discard removes an object that no row names. What it cannot remove is swept
// later, so its failure is not the request's.
func (a *API) discard(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := a.cfg.Objects.Delete(ctx, key); err != nil {
		a.cfg.Logger.Warn().Err(err).Str("key", key).Str("request_id", requestOf(ctx).id).Msg("an object that nothing names could not be deleted; the sweep will")
	}
}

func (a *API) downloadBundle(ctx context.Context, _ caller, in *IDParam) (*locationOut, error) {
	b, err := a.cfg.Store.Bundle(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	url, _, err := a.cfg.Objects.Presign(ctx, b.ObjectKey, downloadTTL)
	return &locationOut{Location: url, CacheControl: "no-store"}, err
}

// verifyBundle compares with what is really in the store: the row's own
// checksum must hold too.
func (a *API) verifyBundle(ctx context.Context, _ caller, in *verifyIn) (*out[verifyOut], error) {
	b, err := a.cfg.Store.Bundle(ctx, in.ID)
	if err != nil {
		return nil, err
	}
	sum, size, err := a.cfg.Objects.Checksum(ctx, b.ObjectKey)
	if fleet.ErrorCode(err) == fleet.CodeNotFound {
		return &out[verifyOut]{}, nil // the row is there, its bytes are gone
	}
	valid := strings.EqualFold(sum, in.Body.Checksum) && sum == b.Checksum && size == b.Size
	return &out[verifyOut]{Body: verifyOut{Valid: valid, Checksum: sum}}, err
}
