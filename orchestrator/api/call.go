package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/strictjson"
)

// strict is the only format: one JSON object without unknown or duplicate keys
// and nothing after it. Unknown keys are found by the schema.
var strict = huma.Format{
	Marshal:   huma.DefaultJSONFormat.Marshal,
	Unmarshal: func(data []byte, v any) error { return strictjson.Decode(data, v, false) },
}

// humaConfig has no transformers: bodies are the domain types and nothing else.
func humaConfig() huma.Config {
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "Kernex admin API", Version: "1",
				Description: "Devices, bundles, deployments and access. Errors are application/problem+json with a stable code.",
				License:     &huma.License{Name: "Apache-2.0", Identifier: "Apache-2.0"},
			},
			Components: &huma.Components{
				Schemas:         huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer),
				SecuritySchemes: map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer", Description: "An API token, kx_..."}},
			},
			Security: []map[string][]string{{"token": {}}},
		},
		Formats:                      map[string]huma.Format{"application/json": strict, "json": strict},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	}
}

// out is an answer with a body.
type out[T any] struct {
	Body T
}

// outStatus is an answer whose status depends.
type outStatus[T any] struct {
	Status int
	Body   T
}

// outETag is an answer with the version of what it shows.
type outETag[T any] struct {
	ETag string `header:"ETag" doc:"The version, for If-Match"`
	Body T
}

// none is an answer without a body, or a call without parameters.
type none struct{}

// PageParams is how lists are asked for. It is exported because huma finds
// parameters only in embedded types that are.
type PageParams struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Items a page"`
	Cursor string `query:"cursor" maxLength:"512" doc:"next_cursor of the page before"`
}

func (p PageParams) page() fleet.Page { return fleet.Page{Limit: p.Limit, Cursor: p.Cursor} }

// IDParam is the id in a path; exported as PageParams is.
type IDParam struct {
	ID string `path:"id" maxLength:"63" pattern:"^[a-z0-9][a-z0-9-]*$" patternDescription:"lower-case letters, digits and dashes"`
}

// register adds one call: its role is checked before its body is looked at, its
// Idempotency-Key before it is done, and its errors become problems.
func register[I, O any](a *API, need fleet.Role, op huma.Operation, fn func(ctx context.Context, c caller, in *I) (*O, error)) {
	op.Metadata = map[string]any{"role": need}
	op.Extensions = map[string]any{"x-kernex-role": string(need)}
	op.MaxBodyBytes = -1 // readBody has seen to it
	op.SkipValidateBody = false
	op.Middlewares = append(op.Middlewares, func(ctx huma.Context, next func(huma.Context)) {
		info := requestOf(ctx.Context())
		if err := allow(info.caller, need); err != nil {
			info.err = err
			p := problemOf(err)
			if err := huma.WriteErr(a.huma, ctx, p.Status, p.Detail); err != nil {
				info.err = err
			}
			return
		}
		next(ctx)
	})
	if op.Method == http.MethodPost {
		op.Parameters = append(op.Parameters, &huma.Param{
			Name: "Idempotency-Key", In: "header", Schema: &huma.Schema{Type: "string"},
			Description: "Makes a repeat safe: the same key and body give the first answer again, for 24 hours",
		})
	}
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		if err := a.replay(ctx); err != nil {
			return nil, a.answerError(ctx, err)
		}
		o, err := fn(ctx, callerOf(ctx), in)
		if errors.Is(err, fleet.ErrRepeated) {
			if again := a.replay(ctx); again != nil {
				err = again
			}
		}
		if err != nil {
			return nil, a.answerError(ctx, err)
		}
		return o, nil
	})
}

// answerError is the error that huma writes: a problem, or an earlier answer.
func (a *API) answerError(ctx context.Context, err error) error {
	var done *earlier
	if errors.As(err, &done) {
		return done
	}
	requestOf(ctx).err = err
	p := problemOf(err)
	if p.Status == http.StatusServiceUnavailable {
		return huma.ErrorWithHeaders(p, http.Header{"Retry-After": {"1"}})
	}
	return p
}

// earlier is the stored answer of a request that was done before; huma writes
// it because it looks like an error with a status.
type earlier struct {
	status int
	body   json.RawMessage
}

// Error implements error.
func (e *earlier) Error() string { return "answered before" }

// GetStatus implements huma.StatusError.
func (e *earlier) GetStatus() int { return e.status }

// MarshalJSON implements json.Marshaler.
func (e *earlier) MarshalJSON() ([]byte, error) { return e.body, nil }

// replay returns *earlier if this request was done before, or why it cannot be.
func (a *API) replay(ctx context.Context) error {
	o, ok := fleet.OnceFrom(ctx)
	if !ok {
		return nil
	}
	status, body, found, err := a.cfg.Store.Replay(ctx, o)
	if err != nil || !found {
		return err
	}
	return &earlier{status: status, body: body}
}
