package api_test

import (
	"crypto/rand"
	"io"
	"net/http"
	"strings"

	"aead.dev/minisign"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// How a token with a label scope fares.
const (
	perDevice = "device" // its own device: as without a scope; another one does not exist for it
	naming    = "naming" // the body names devices or labels: another's are forbidden
	filtered  = "list"   // the answer leaves out what is not its own
	choosing  = "choose" // a selector chooses nobody where it would choose another's
	whole     = "whole"  // about the whole fleet: forbidden
	shared    = "shared" // bundles: seen by all
)

// request is a call of an operation about something of one site.
type request struct {
	path    string
	body    any
	header  header
	visible string // what the answer shows of it
}

// operation is what the matrix expects of one operation.
type operation struct {
	need  fleet.Role
	scope string
	ok    int
	call  func(e *env, site string) request
}

// about makes requests about a new device of a site.
func about(suffix string, body any, prepare ...string) func(*env, string) request {
	return func(e *env, site string) request {
		id := e.device(fleet.Labels{"site": site}).ID
		for _, q := range prepare {
			e.sql(q, id)
		}
		return request{path: "/devices/" + id + suffix, body: body, visible: id}
	}
}

// to makes requests that do not depend on what is there.
func to(path string, body any) func(*env, string) request {
	return func(*env, string) request { return request{path: path, body: body} }
}

// ofDeployment makes requests about a new deployment to a device of a site that
// ran one bundle before; ended is its end.
func ofDeployment(suffix, ended string) func(*env, string) request {
	return func(e *env, site string) request {
		id := e.device(fleet.Labels{"site": site}).ID
		var dep fleet.Deployment
		e.deploy(map[string]any{"bundle": "edge", "bundle_version": "2.0.0", "target_devices": []string{id}}).into(http.StatusCreated, &dep)
		if ended != "" {
			e.end(dep.ID, "failed", map[string]string{id: ended})
			e.sql(`UPDATE deployment_targets SET previous_bundle = (SELECT id FROM bundles WHERE name = 'edge' AND version = '1.0.0') WHERE deployment_id = $1`, dep.ID)
		}
		return request{path: "/deployments/" + dep.ID + suffix, visible: dep.ID}
	}
}

func deployTo(path string) func(*env, string) request {
	return func(e *env, site string) request {
		id := e.device(fleet.Labels{"site": site}).ID
		return request{path: path, body: map[string]any{"bundle": "edge", "bundle_version": "2.0.0", "target_devices": []string{id}}}
	}
}

func ofBundle(suffix string, body any) func(*env, string) request {
	return func(e *env, _ string) request {
		var b fleet.Bundle
		e.upload(makeBundle(e.t, fleet.NewID("m"), "1.0.0", 10)).into(http.StatusCreated, &b)
		return request{path: "/bundles/" + b.ID + suffix, body: body}
	}
}

func claim(e *env, site string) string {
	var made struct{ ID string }
	e.call("POST", "/enrollment-tokens", map[string]any{"labels": fleet.Labels{"site": site}}).into(http.StatusCreated, &made)
	return made.ID
}

const online = `UPDATE device_status SET online = true WHERE device_id = $1`

func status(s fleet.Credential) string {
	return `UPDATE devices SET status = '` + string(s) + `' WHERE id = $1`
}

// operations says who may do what. Every operation of the API is here.
var operations = map[string]operation{
	"GET /devices": {fleet.RoleViewer, filtered, 200, func(e *env, site string) request {
		return request{path: "/devices?limit=1000", visible: e.device(fleet.Labels{"site": site}).ID}
	}},
	"POST /devices": {fleet.RoleAdmin, naming, 201, func(e *env, site string) request {
		return request{path: "/devices", body: fleet.Registration{PublicKey: newKey(e.t), Labels: fleet.Labels{"site": site}}}
	}},
	"GET /devices/{id}":                {fleet.RoleViewer, perDevice, 200, about("", nil)},
	"PATCH /devices/{id}":              {fleet.RoleOperator, perDevice, 200, about("", map[string]any{"description": "matrix"})},
	"DELETE /devices/{id}":             {fleet.RoleAdmin, perDevice, 204, about("", nil)},
	"GET /devices/{id}/heartbeats":     {fleet.RoleViewer, perDevice, 200, about("/heartbeats", nil)},
	"GET /devices/{id}/bundle-history": {fleet.RoleViewer, perDevice, 200, about("/bundle-history", nil)},
	"POST /devices/{id}/approve":       {fleet.RoleAdmin, perDevice, 200, about("/approve", nil, status(fleet.CredentialPending))},
	"POST /devices/{id}/quarantine":    {fleet.RoleAdmin, perDevice, 200, about("/quarantine", nil)},
	"POST /devices/{id}/release":       {fleet.RoleAdmin, perDevice, 200, about("/release", nil, status(fleet.CredentialQuarantined))},
	"POST /devices/{id}/revoke":        {fleet.RoleAdmin, perDevice, 200, about("/revoke", nil)},
	"GET /devices/{id}/config":         {fleet.RoleViewer, perDevice, 200, about("/config", nil)},
	"PUT /devices/{id}/config":         {fleet.RoleOperator, perDevice, 200, about("/config", map[string]any{"log_level": "debug"})},
	"GET /devices/{id}/config/history": {fleet.RoleViewer, perDevice, 200, about("/config/history", nil)},
	"GET /devices/{id}/logs":           {fleet.RoleViewer, perDevice, 200, about("/logs", nil)},
	"POST /devices/{id}/logs":          {fleet.RoleOperator, perDevice, 202, about("/logs", map[string]any{"lines": 1}, online)},
	"POST /devices/{id}/restart":       {fleet.RoleOperator, perDevice, 202, about("/restart", nil, online)},
	"POST /deployments":                {fleet.RoleOperator, naming, 201, deployTo("/deployments")},
	"POST /deployments/plan":           {fleet.RoleViewer, naming, 200, deployTo("/deployments/plan")},
	"GET /deployments/{id}":            {fleet.RoleViewer, perDevice, 200, ofDeployment("", "")},
	"GET /deployments/{id}/targets":    {fleet.RoleViewer, perDevice, 200, ofDeployment("/targets", "")},
	"POST /deployments/{id}/cancel":    {fleet.RoleOperator, perDevice, 200, ofDeployment("/cancel", "")},
	"POST /deployments/{id}/retry":     {fleet.RoleOperator, perDevice, 201, ofDeployment("/retry", "rolled_back")},
	"POST /deployments/{id}/rollback":  {fleet.RoleOperator, perDevice, 201, ofDeployment("/rollback", "succeeded")},
	"GET /bundles":                     {fleet.RoleViewer, shared, 200, to("/bundles", nil)},
	"GET /bundles/{id}":                {fleet.RoleViewer, shared, 200, ofBundle("", nil)},
	"GET /bundles/{id}/download":       {fleet.RoleViewer, shared, 302, ofBundle("/download", nil)},
	"POST /bundles/{id}/verify":        {fleet.RoleViewer, shared, 200, ofBundle("/verify", map[string]any{"checksum_sha256": strings.Repeat("0", 64)})},
	"DELETE /bundles/{id}":             {fleet.RoleOperator, whole, 204, ofBundle("", nil)},
	"GET /events":                      {fleet.RoleViewer, shared, 200, to("/events", nil)}, // each event by its device: TestAnEventStreamShowsOnlyWhatItMay
	"GET /tokens":                      {fleet.RoleAdmin, whole, 200, to("/tokens", nil)},
	"POST /tokens":                     {fleet.RoleAdmin, whole, 201, to("/tokens", map[string]any{"name": "matrix", "role": "viewer"})},
	"GET /audit":                       {fleet.RoleAdmin, whole, 200, to("/audit", nil)},
	"GET /deployments": {fleet.RoleViewer, filtered, 200, func(e *env, site string) request {
		r := ofDeployment("", "")(e, site)
		r.path = "/deployments?limit=1000"
		return r
	}},
	"POST /devices/rollback": {fleet.RoleOperator, naming, 201, func(e *env, site string) request {
		id := e.device(fleet.Labels{"site": site}).ID
		e.sql(`INSERT INTO device_bundle_history (device_id, bundle_id, deployment_id, status) SELECT $1, id, 'dep-matrix', 'success' FROM bundles WHERE name = 'edge' AND version = '1.0.0'`, id)
		return request{path: "/devices/rollback", body: map[string]any{"bundle_version": "1.0.0", "target_device_ids": []string{id}}}
	}},
	"PUT /config": {fleet.RoleOperator, choosing, 200, func(e *env, site string) request {
		id := e.device(fleet.Labels{"site": site}).ID
		e.sql(`UPDATE devices SET labels = labels || jsonb_build_object('this', id) WHERE id = $1`, id)
		return request{path: "/config" + query("selector", "this="+id), body: map[string]any{"log_level": "warn"}}
	}},
	"POST /bundles": {fleet.RoleOperator, shared, 201, func(e *env, _ string) request {
		body, kind := form(e.t, makeBundle(e.t, fleet.NewID("m"), "1.0.0", 10))
		b, err := io.ReadAll(body)
		if err != nil {
			e.t.Fatal(err)
		}
		return request{path: "/bundles", body: string(b), header: kind}
	}},
	"DELETE /tokens/{id}": {fleet.RoleAdmin, whole, 204, func(e *env, _ string) request {
		var made struct{ ID string }
		e.call("POST", "/tokens", map[string]any{"name": "matrix", "role": "viewer"}).into(http.StatusCreated, &made)
		return request{path: "/tokens/" + made.ID}
	}},
	"GET /release-keys": {fleet.RoleViewer, shared, 200, to("/release-keys", nil)},
	"POST /release-keys": {fleet.RoleAdmin, whole, 201, func(e *env, _ string) request {
		pub, _, err := minisign.GenerateKey(rand.Reader)
		if err != nil {
			e.t.Fatal(err)
		}
		return request{path: "/release-keys", body: map[string]any{"public_key": pub.String()}}
	}},
	"DELETE /release-keys/{id}": {fleet.RoleAdmin, whole, 204, func(e *env, _ string) request {
		const id = "00000000000000a1"
		e.sql(`INSERT INTO release_keys (id, public_key, file) VALUES ($1, 'a', 'a'), ('00000000000000b2', 'b', 'b') ON CONFLICT DO NOTHING`, id)
		return request{path: "/release-keys/" + id}
	}},
	"GET /enrollment-tokens": {fleet.RoleAdmin, filtered, 200, func(e *env, site string) request {
		return request{path: "/enrollment-tokens?limit=1000", visible: claim(e, site)}
	}},
	"POST /enrollment-tokens": {fleet.RoleAdmin, naming, 201, func(_ *env, site string) request {
		return request{path: "/enrollment-tokens", body: map[string]any{"labels": fleet.Labels{"site": site}}}
	}},
	"DELETE /enrollment-tokens/{id}": {fleet.RoleAdmin, perDevice, 204, func(e *env, site string) request {
		return request{path: "/enrollment-tokens/" + claim(e, site)}
	}},
}
