package api_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
)

func TestRegisterIsIdempotentOnTheKey(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	reg := fleet.Registration{PublicKey: newKey(t), DeviceType: "gateway", Serial: "S-1", Labels: fleet.Labels{"site": "berlin"}, HardwareMetadata: map[string]any{"ram_mb": 512}}
	var first, second fleet.Device
	e.call("POST", "/devices", reg).into(http.StatusCreated, &first)
	reg.Serial = "another"
	e.call("POST", "/devices", reg).into(http.StatusOK, &second)
	if first.ID != second.ID || second.Serial != "S-1" {
		t.Errorf("first %+v, then %+v", first, second)
	}
	if first.Status != "offline" || first.KeyType != "ed25519" || !strings.HasPrefix(first.Fingerprint, "SHA256:") || first.Labels["site"] != "berlin" || first.ConfigVersion != 1 {
		t.Errorf("device: %+v", first)
	}
	var list fleet.List[fleet.Device]
	e.call("GET", "/devices", nil).into(http.StatusOK, &list)
	if list.Total != 1 || len(list.Items) != 1 || list.NextCursor != "" {
		t.Errorf("list: %+v", list)
	}
}

func TestDevicesAreListedBySelectorStatusAndText(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	ids := map[string]string{}
	for i, labels := range []fleet.Labels{{"site": "berlin", "ring": "canary"}, {"site": "berlin", "ring": "wide"}, {"site": "paris"}} {
		d := e.device(labels)
		ids[fmt.Sprint(i)] = d.ID
	}
	for _, c := range []struct {
		query string
		want  int
	}{
		{"", 3},
		{query("selector", "site=berlin"), 2},
		{query("selector", "site=berlin,ring!=canary"), 1},
		{query("selector", "ring!=canary"), 2},
		{query("selector", "site=berlin,site=paris"), 0},
		{query("status", "offline"), 3},
		{query("status", "online"), 0},
		{query("status", "revoked"), 0},
		{query("q", ids["2"][2:9]), 1},
		{query("q", "%"), 0},
		{query("bundle_version", "1.0.0"), 0},
	} {
		var list fleet.List[fleet.Device]
		e.call("GET", "/devices"+c.query, nil).into(http.StatusOK, &list)
		if list.Total != c.want || len(list.Items) != c.want {
			t.Errorf("%q: %d of %d devices, want %d", c.query, len(list.Items), list.Total, c.want)
		}
	}
}

func TestPagesGiveEveryDeviceOnce(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	want := map[string]bool{}
	for range 7 {
		want[e.device(nil).ID] = true
	}
	cursor := ""
	for pages := 1; ; pages++ {
		var list fleet.List[fleet.Device]
		e.call("GET", "/devices"+query("limit", "3", "cursor", cursor), nil).into(http.StatusOK, &list)
		if list.Total != 7 {
			t.Errorf("page %d: total %d", pages, list.Total)
		}
		for _, d := range list.Items {
			if !want[d.ID] {
				t.Errorf("page %d: %s is there twice", pages, d.ID)
			}
			delete(want, d.ID)
		}
		if cursor = list.NextCursor; cursor == "" {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
	}
	if len(want) > 0 {
		t.Errorf("never listed: %v", want)
	}
}

func TestOperatorsChangeLabelsAndDescription(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	d := e.device(fleet.Labels{"site": "berlin"})
	op := e.token(fleet.RoleOperator, "")
	var got fleet.Device
	e.call("PATCH", "/devices/"+d.ID, map[string]any{"description": "in the cellar"}, as(op)).into(http.StatusOK, &got)
	if got.Description != "in the cellar" || got.Labels["site"] != "berlin" {
		t.Errorf("after the description: %+v", got)
	}
	e.call("PATCH", "/devices/"+d.ID, map[string]any{"labels": map[string]string{"site": "paris"}}, as(op)).into(http.StatusOK, &got)
	if got.Description != "in the cellar" || got.Labels["site"] != "paris" || len(got.Labels) != 1 {
		t.Errorf("after the labels: %+v", got)
	}
	var log fleet.List[fleet.AuditEntry]
	e.call("GET", "/audit"+query("subject", d.ID, "action", "device.update"), nil).into(http.StatusOK, &log)
	if log.Total != 2 || log.Items[0].Remote != "127.0.0.1" {
		t.Errorf("audit: %+v", log)
	}
}

func TestCredentialsMoveOnlyWhereTheyMay(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id := e.device(nil).ID
	for _, step := range []struct {
		verb   string
		status int
		want   string
	}{
		{"approve", http.StatusOK, "offline"}, // active already
		{"quarantine", http.StatusOK, "quarantined"},
		{"approve", http.StatusConflict, "quarantined"},
		{"release", http.StatusOK, "offline"},
		{"revoke", http.StatusOK, "revoked"},
		{"revoke", http.StatusOK, "revoked"},
		{"release", http.StatusConflict, "revoked"},
		{"quarantine", http.StatusConflict, "revoked"},
	} {
		a := e.call("POST", "/devices/"+id+"/"+step.verb, nil)
		if step.status == http.StatusOK {
			a.into(http.StatusOK, nil)
		} else {
			a.refused(step.status, fleet.CodeConflict)
		}
		var d fleet.Device
		e.call("GET", "/devices/"+id, nil).into(http.StatusOK, &d)
		if d.Status != step.want {
			t.Errorf("after %s: %s, want %s", step.verb, d.Status, step.want)
		}
	}
}

func TestARevokedKeyCannotRegisterAgain(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	reg := fleet.Registration{PublicKey: newKey(t)}
	var d fleet.Device
	e.call("POST", "/devices", reg).into(http.StatusCreated, &d)
	e.call("POST", "/devices/"+d.ID+"/revoke", nil).into(http.StatusOK, nil)
	e.call("POST", "/devices", reg).refused(http.StatusConflict, fleet.CodeConflict)
}

func TestADeletedDeviceIsGone(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	d := e.device(nil)
	e.call("DELETE", "/devices/"+d.ID, nil).into(http.StatusNoContent, nil)
	e.call("GET", "/devices/"+d.ID, nil).refused(http.StatusNotFound, fleet.CodeNotFound)
	e.call("DELETE", "/devices/"+d.ID, nil).refused(http.StatusNotFound, fleet.CodeNotFound)
}
