package api_test

import (
	"net/http"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// sql runs statements on the test's database, for what devices and the engine
// do in a whole system.
func (e *env) sql(q string, args ...any) {
	e.t.Helper()
	if _, err := e.raw.ExecContext(e.t.Context(), q, args...); err != nil {
		e.t.Fatal(err)
	}
}

// count reads one number.
func (e *env) count(q string, args ...any) (n int) {
	e.t.Helper()
	if err := e.raw.QueryRowContext(e.t.Context(), q, args...).Scan(&n); err != nil {
		e.t.Fatal(err)
	}
	return n
}

func TestConfigDefaultsAreMadeOnFirstRead(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id := e.device(nil).ID
	if n := e.count(`SELECT count(*) FROM device_configs`); n != 0 {
		t.Fatalf("%d configurations before the first read", n)
	}
	var c fleet.DeviceConfig
	a := e.call("GET", "/devices/"+id+"/config", nil).into(http.StatusOK, &c)
	if c.Version != 1 || c.HeartbeatIntervalS != 60 || c.HeartbeatTimeoutS != 30 || c.DeployTimeoutS != 300 || c.LogLevel != "info" || c.Metadata == nil || c.ReportedVersion != 0 {
		t.Errorf("defaults: %+v", c)
	}
	if got := a.header.Get("ETag"); got != `"1"` {
		t.Errorf("ETag %s", got)
	}
	e.call("GET", "/devices/"+id+"/config", nil).into(http.StatusOK, nil)
	if n := e.count(`SELECT count(*) FROM device_config_versions`); n != 1 {
		t.Errorf("%d versions after two reads", n)
	}
}

func TestAConfigChangeMakesVersionPlusOneAndACommand(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id := e.device(nil).ID
	path := "/devices/" + id + "/config"
	var c fleet.DeviceConfig
	e.call("PUT", path, map[string]any{"heartbeat_interval_s": 10}).into(http.StatusOK, &c)
	if c.Version != 2 || c.HeartbeatIntervalS != 10 || c.HeartbeatTimeoutS != 30 {
		t.Errorf("first change: %+v", c)
	}
	e.call("PUT", path, map[string]any{"heartbeat_interval_s": 10, "log_level": "info"}).into(http.StatusOK, &c)
	if c.Version != 2 {
		t.Errorf("equal content made version %d", c.Version)
	}
	e.sql(`UPDATE device_status SET highest_seq = 41 WHERE device_id = $1`, id)
	e.call("PUT", path, map[string]any{"metadata": map[string]any{"threshold": 0.5}}).into(http.StatusOK, &c)
	if c.Version != 3 || c.Metadata["threshold"] != 0.5 || c.HeartbeatIntervalS != 10 {
		t.Errorf("second change: %+v", c)
	}
	if n := e.count(`SELECT count(*) FROM commands WHERE type = 'configure' AND status = 'open' AND seq > 41`); n != 1 {
		t.Errorf("%d open configure commands above the device's highest seq", n)
	}
	if n := e.count(`SELECT count(*) FROM commands WHERE type = 'configure' AND status = 'cancelled'`); n != 1 {
		t.Errorf("%d older configure commands closed", n)
	}
	var h fleet.List[fleet.ConfigVersion]
	e.call("GET", path+"/history", nil).into(http.StatusOK, &h)
	if h.Total != 3 || h.Items[0].Version != 3 || h.Items[2].Version != 1 || h.Items[0].CreatedBy == "" {
		t.Errorf("history: %+v", h)
	}
	var d fleet.Device
	e.call("GET", "/devices/"+id, nil).into(http.StatusOK, &d)
	if d.ConfigVersion != 3 || d.ConfigReported != 0 {
		t.Errorf("device: %+v", d)
	}
}

func TestAStaleIfMatchChangesNothing(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id := e.device(nil).ID
	path := "/devices/" + id + "/config"
	e.call("PUT", path, map[string]any{"log_level": "debug"}, header{"If-Match", `"1"`}).into(http.StatusOK, nil)
	e.call("PUT", path, map[string]any{"log_level": "warn"}, header{"If-Match", `"1"`}).refused(http.StatusPreconditionFailed, fleet.CodeStale)
	e.call("PUT", path, map[string]any{"log_level": "warn"}, header{"If-Match", `nonsense`}).refused(http.StatusPreconditionFailed, fleet.CodeStale)
	var c fleet.DeviceConfig
	e.call("GET", path, nil).into(http.StatusOK, &c)
	if c.Version != 2 || c.LogLevel != "debug" {
		t.Errorf("after stale changes: %+v", c)
	}
	e.call("PUT", path, map[string]any{"log_level": "warn"}, header{"If-Match", "*"}).into(http.StatusOK, &c)
	if c.Version != 3 {
		t.Errorf("any version: %+v", c)
	}
}

func TestAConfigOutOfBoundsIsRefused(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	path := "/devices/" + e.device(nil).ID + "/config"
	for _, body := range []string{
		`{"heartbeat_interval_s":0}`, `{"heartbeat_interval_s":86401}`, `{"heartbeat_timeout_s":4}`, `{"deploy_timeout_s":-1}`,
		`{"log_level":"loud"}`, `{"metadata":{"":1}}`, `{"metadata":{"a":"\u0000"}}`, `{"heartbeat_interval_s":"60"}`, `{"heartbeat_interval_s":1.5}`, `{"interval":3}`,
	} {
		e.call("PUT", path, body).refused(http.StatusBadRequest, fleet.CodeInvalid)
	}
	if n := e.count(`SELECT count(*) FROM commands`); n != 0 {
		t.Errorf("%d commands after refused changes", n)
	}
}

func TestManyDevicesGetAVersionEach(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	a, b, c := e.device(fleet.Labels{"site": "berlin"}).ID, e.device(fleet.Labels{"site": "berlin"}).ID, e.device(fleet.Labels{"site": "paris"}).ID
	e.call("PUT", "/devices/"+a+"/config", map[string]any{"log_level": "debug"}).into(http.StatusOK, nil)
	var change fleet.ConfigChange
	e.call("PUT", "/config"+query("selector", "site=berlin"), map[string]any{"log_level": "debug"}).into(http.StatusOK, &change)
	if change.Devices != 2 || change.Changed != 1 {
		t.Errorf("change: %+v", change)
	}
	for id, want := range map[string]int64{a: 2, b: 2, c: 1} {
		var got fleet.DeviceConfig
		e.call("GET", "/devices/"+id+"/config", nil).into(http.StatusOK, &got)
		if got.Version != want {
			t.Errorf("%s: version %d, want %d", id, got.Version, want)
		}
	}
	e.call("PUT", "/config"+query("selector", "site=rome"), map[string]any{"log_level": "warn"}).refused(http.StatusBadRequest, fleet.CodeInvalid)
	e.call("PUT", "/config", map[string]any{"log_level": "warn"}).refused(http.StatusBadRequest, fleet.CodeInvalid)
}

func TestAQuarantinedDeviceIsToldWhenItIsReleased(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id := e.device(nil).ID
	e.call("POST", "/devices/"+id+"/quarantine", nil).into(http.StatusOK, nil)
	e.call("PUT", "/devices/"+id+"/config", map[string]any{"log_level": "debug"}).into(http.StatusOK, nil)
	if n := e.count(`SELECT count(*) FROM commands`); n != 0 {
		t.Errorf("%d commands to a quarantined device", n)
	}
	e.call("POST", "/devices/"+id+"/release", nil).into(http.StatusOK, nil)
	if n := e.count(`SELECT count(*) FROM commands WHERE type = 'configure' AND status = 'open'`); n != 1 {
		t.Errorf("%d configure commands after the release", n)
	}
}
