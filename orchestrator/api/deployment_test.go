package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// bundle makes a bundle's row, for tests that need no bytes.
func (e *env) bundle(name, version string) string {
	e.t.Helper()
	id := fleet.NewID("bun")
	manifest := `{"schema":1,"name":"` + name + `","version":"` + version + `","arch":["arm64"],"deploy":{"script":"deploy.sh","timeout_s":300},
		"files":[{"path":"deploy.sh","mode":"0755","size":1,"sha256":"` + strings.Repeat("0", 64) + `"}]}`
	e.sql(`INSERT INTO bundles (id, name, version, release, checksum_sha256, size, object_key, manifest, part_size) VALUES ($1, $2, $3, $1, $1, 1000, $1, $4, 1048576)`,
		id, name, version, manifest)
	return id
}

// ran notes that a device ran a bundle.
func (e *env) ran(device, bundle, status string) {
	e.t.Helper()
	e.sql(`INSERT INTO device_bundle_history (device_id, bundle_id, deployment_id, status) VALUES ($1, $2, $3, $4)`, device, bundle, fleet.NewID("dep"), status)
}

func (e *env) deploy(body map[string]any, headers ...header) answer {
	e.t.Helper()
	return e.call("POST", "/deployments", body, headers...)
}

// nothingStored fails if a refused request left a deployment or a target.
func (e *env) nothingStored(what string) {
	e.t.Helper()
	if n := e.count(`SELECT (SELECT count(*) FROM deployments) + (SELECT count(*) FROM deployment_targets)`); n != 0 {
		e.t.Errorf("%s: %d rows of deployments and targets", what, n)
	}
}

func TestADeploymentIsStoredWithItsTargets(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.bundle("edge", "1.0.0")
	a, b := e.device(fleet.Labels{"site": "berlin"}), e.device(fleet.Labels{"site": "berlin"})
	e.device(fleet.Labels{"site": "paris"})
	gone := e.device(fleet.Labels{"site": "berlin"})
	e.call("POST", "/devices/"+gone.ID+"/revoke", nil).into(http.StatusOK, nil)
	var dep fleet.Deployment
	e.deploy(map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "selector": "site=berlin", "description": "spring", "rollout": map[string]any{"timeout_s": 600}}).into(http.StatusCreated, &dep)
	if dep.Status != fleet.DeploymentPending || dep.Kind != "deploy" || dep.Total != 2 || dep.Progress["pending"] != 2 || dep.Selector != "site=berlin" ||
		dep.Bundle != "edge" || dep.BundleVersion != "1.0.0" || dep.Rollout.TimeoutS != 600 || dep.Deadline.Sub(dep.CreatedAt).Seconds() != 600 {
		t.Errorf("deployment: %+v", dep)
	}
	var targets fleet.List[fleet.Target]
	e.call("GET", "/deployments/"+dep.ID+"/targets"+query("state", "pending"), nil).into(http.StatusOK, &targets)
	got := map[string]bool{}
	for _, tg := range targets.Items {
		got[tg.DeviceID] = tg.BundleVersion == "1.0.0"
	}
	if targets.Total != 2 || !got[a.ID] || !got[b.ID] {
		t.Errorf("targets: %+v", targets)
	}
	e.call("GET", "/deployments/"+dep.ID+"/targets"+query("state", "failed"), nil).into(http.StatusOK, &targets)
	if targets.Total != 0 {
		t.Errorf("failed targets: %+v", targets)
	}
	var list fleet.List[fleet.Deployment]
	e.call("GET", "/deployments"+query("status", "pending"), nil).into(http.StatusOK, &list)
	if list.Total != 1 || list.Items[0].ID != dep.ID || list.Items[0].Progress["pending"] != 2 {
		t.Errorf("list: %+v", list)
	}
	e.deploy(map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "selector": ""}).into(http.StatusCreated, &dep)
	if dep.Total != 3 {
		t.Errorf("the empty selector chose %d devices", dep.Total)
	}
}

func TestADeploymentThatCannotWorkIsRefusedAndNotStored(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.bundle("edge", "1.0.0")
	active, revoked, quarantined := e.device(nil).ID, e.device(nil).ID, e.device(nil).ID
	e.call("POST", "/devices/"+revoked+"/revoke", nil).into(http.StatusOK, nil)
	e.call("POST", "/devices/"+quarantined+"/quarantine", nil).into(http.StatusOK, nil)
	for _, c := range []struct {
		name   string
		body   map[string]any
		status int
		code   fleet.Code
		says   string
	}{
		{"unknown bundle", map[string]any{"bundle": "other", "bundle_version": "1.0.0", "target_devices": []string{active}}, 404, fleet.CodeNotFound, `"other"`},
		{"unknown version", map[string]any{"bundle": "edge", "bundle_version": "9.0.0", "target_devices": []string{active}}, 404, fleet.CodeNotFound, "9.0.0"},
		{"unknown device", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{active, "nobody"}}, 404, fleet.CodeNotFound, "nobody"},
		{"no device id", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{"../x"}}, 400, fleet.CodeInvalid, "../x"},
		{"nobody selected", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "selector": "site=rome"}, 400, fleet.CodeInvalid, "site=rome"},
		{"nobody named", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{}}, 400, fleet.CodeInvalid, "selector"},
		{"both", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{active}, "selector": ""}, 400, fleet.CodeInvalid, "not both"},
		{"revoked", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{active, revoked}}, 409, fleet.CodeConflict, revoked + " is revoked"},
		{"quarantined", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{quarantined}}, 409, fleet.CodeConflict, "quarantined"},
		{"bad selector", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "selector": "site"}, 400, fleet.CodeInvalid, "site"},
		{"short timeout", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{active}, "rollout": map[string]any{"timeout_s": 1}}, 400, fleet.CodeInvalid, "timeout_s"},
	} {
		if detail := e.deploy(c.body).refused(c.status, c.code); !strings.Contains(detail, c.says) {
			t.Errorf("%s: the reason %q does not say %q", c.name, detail, c.says)
		}
		if c.name != "nobody named" {
			e.call("POST", "/deployments/plan", c.body)
		}
		e.nothingStored(c.name)
	}
}

func TestAPlanStoresNothing(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.bundle("edge", "1.0.0")
	fits, other, unknown := e.device(nil).ID, e.device(nil).ID, e.device(nil).ID
	e.sql(`UPDATE device_status SET arch = 'arm64' WHERE device_id = $1`, fits)
	e.sql(`UPDATE device_status SET arch = 'amd64' WHERE device_id = $1`, other)
	var p fleet.Plan
	e.call("POST", "/deployments/plan", map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "selector": ""}, as(e.token(fleet.RoleViewer, ""))).into(http.StatusOK, &p)
	if p.Devices != 2 || p.Bytes != 2000 || p.Waves != 1 || len(p.Refused) != 1 || p.Refused[0].DeviceID != other || p.Refused[0].Code != fleet.CodeWrongDevice {
		t.Errorf("plan without %s: %+v", unknown, p)
	}
	e.nothingStored("plan")
}

func TestRollbackToANeverDeployedVersionIsRefused(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	one, two := e.bundle("edge", "1.0.0"), e.bundle("edge", "2.0.0")
	a, b := e.device(nil).ID, e.device(nil).ID
	e.ran(a, one, "success")
	e.ran(a, two, "failed")
	rollback := func(version string, ids ...string) answer {
		return e.call("POST", "/devices/rollback", map[string]any{"bundle_version": version, "target_device_ids": ids})
	}
	if detail := rollback("2.0.0", a).refused(http.StatusBadRequest, fleet.CodeInvalid); !strings.Contains(detail, a) {
		t.Errorf("the reason %q does not name the device", detail)
	}
	rollback("1.0.0", a, b).refused(http.StatusBadRequest, fleet.CodeInvalid)
	rollback("1.0.0").refused(http.StatusBadRequest, fleet.CodeInvalid)
	rollback("1.0.0", "nobody").refused(http.StatusNotFound, fleet.CodeNotFound)
	e.nothingStored("refused rollbacks")
	var dep fleet.Deployment
	rollback("1.0.0", a).into(http.StatusCreated, &dep)
	if dep.Kind != "rollback" || dep.BundleID != one || dep.Total != 1 {
		t.Errorf("rollback: %+v", dep)
	}
}

func TestBundleHistoryIsNewestFirst(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	one, two := e.bundle("edge", "1.0.0"), e.bundle("edge", "2.0.0")
	id := e.device(nil).ID
	e.ran(id, one, "success")
	e.ran(id, two, "rolled_back")
	e.ran(id, one, "failed")
	var h, rest fleet.List[fleet.HistoryEntry]
	e.call("GET", "/devices/"+id+"/bundle-history"+query("limit", "2"), nil).into(http.StatusOK, &h)
	if h.Total != 3 || len(h.Items) != 2 || h.Items[0].Status != "failed" || h.Items[1].Version != "2.0.0" || h.Items[1].BundleName != "edge" || h.NextCursor == "" {
		t.Errorf("history: %+v", h)
	}
	e.call("GET", "/devices/"+id+"/bundle-history"+query("limit", "2", "cursor", h.NextCursor), nil).into(http.StatusOK, &rest)
	if len(rest.Items) != 1 || rest.Items[0].Status != "success" || rest.NextCursor != "" {
		t.Errorf("second page: %+v", rest)
	}
}

// end puts a deployment's targets and itself where the engine would.
func (e *env) end(dep string, status string, states map[string]string) {
	e.t.Helper()
	for device, state := range states {
		e.sql(`UPDATE deployment_targets SET state = $3 WHERE deployment_id = $1 AND device_id = $2`, dep, device, state)
	}
	e.sql(`UPDATE deployments SET status = $2, finished_at = now() WHERE id = $1`, dep, status)
}

func TestADeploymentThatEndedCanBeTriedAgainOrUndone(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	one, two := e.bundle("edge", "1.0.0"), e.bundle("edge", "2.0.0")
	a, b, c := e.device(nil).ID, e.device(nil).ID, e.device(nil).ID
	var dep, again, undo fleet.Deployment
	e.deploy(map[string]any{"bundle": "edge", "bundle_version": "2.0.0", "target_devices": []string{a, b, c}}).into(http.StatusCreated, &dep)
	e.call("POST", "/deployments/"+dep.ID+"/retry", nil).refused(http.StatusConflict, fleet.CodeConflict)
	e.call("POST", "/deployments/"+dep.ID+"/rollback", nil).refused(http.StatusConflict, fleet.CodeConflict)
	e.end(dep.ID, "failed", map[string]string{a: "succeeded", b: "rolled_back", c: "expired"})

	e.call("POST", "/deployments/"+dep.ID+"/retry", nil).into(http.StatusCreated, &again)
	if again.Total != 2 || again.BundleID != two || again.Kind != "deploy" {
		t.Errorf("retry: %+v", again)
	}
	e.call("POST", "/deployments/"+dep.ID+"/rollback", nil).refused(http.StatusBadRequest, fleet.CodeInvalid) // nothing was there before
	e.sql(`UPDATE deployment_targets SET previous_bundle = $2, previous_version = '1.0.0' WHERE deployment_id = $1`, dep.ID, one)
	e.call("POST", "/deployments/"+dep.ID+"/rollback", nil).into(http.StatusCreated, &undo)
	if undo.Total != 1 || undo.BundleID != one || undo.Kind != "rollback" {
		t.Errorf("rollback: %+v", undo)
	}
	e.call("POST", "/deployments/"+dep.ID+"/rollback", map[string]any{"target_version": "3.0.0"}).refused(http.StatusBadRequest, fleet.CodeInvalid)
	e.ran(a, one, "success")
	e.call("POST", "/deployments/"+dep.ID+"/rollback", map[string]any{"target_version": "1.0.0"}).into(http.StatusCreated, &undo)
	if undo.Total != 1 || undo.BundleID != one {
		t.Errorf("rollback to a version: %+v", undo)
	}
}

func TestCancelIsAskedForOnce(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.bundle("edge", "1.0.0")
	d := e.device(nil).ID
	var dep fleet.Deployment
	e.deploy(map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{d}}).into(http.StatusCreated, &dep)
	e.call("DELETE", "/devices/"+d, nil).refused(http.StatusConflict, fleet.CodeConflict)
	e.call("POST", "/deployments/"+dep.ID+"/cancel", nil).into(http.StatusOK, &dep)
	if !strings.Contains(dep.Reason, "first admin") || e.count(`SELECT count(*) FROM deployments WHERE cancel`) != 1 {
		t.Errorf("cancelled: %+v", dep)
	}
	e.end(dep.ID, "cancelled", map[string]string{d: "cancelled"})
	e.call("POST", "/deployments/"+dep.ID+"/cancel", nil).into(http.StatusOK, nil)
	e.end(dep.ID, "success", nil)
	e.call("POST", "/deployments/"+dep.ID+"/cancel", nil).refused(http.StatusConflict, fleet.CodeConflict)
	e.call("POST", "/deployments/dep-nothing/cancel", nil).refused(http.StatusNotFound, fleet.CodeNotFound)
}
