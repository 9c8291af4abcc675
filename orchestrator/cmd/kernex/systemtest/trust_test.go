package systemtest

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// counted copies an example bundle and gives its manifest a counter and a floor.
func counted(t *testing.T, version string, counter, floor int) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), version)
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(bin(t), version))); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "manifest.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte("{"), fmt.Appendf(nil, `{"counter": %d, "min_counter": %d,`, counter, floor), 1)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// healthy120 is a release after 1.1.0 that is healthy.
func healthy120(t *testing.T) string {
	t.Helper()
	dir := counted(t, "1.0.0", 3, 0)
	file := filepath.Join(dir, "manifest.json")
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, bytes.Replace(text, []byte(`"1.0.0"`), []byte(`"1.2.0"`), 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// pins waits until a device has pinned exactly these release keys.
func (a *agent) pins(ids ...string) {
	a.t.Helper()
	testkit.Eventually(a.t, patience, func() error {
		b, err := os.ReadFile(filepath.Join(a.dir, "device_config.json"))
		if err != nil {
			return err
		}
		var c struct {
			Mode string   `json:"trust_mode"`
			Keys []string `json:"release_keys"`
		}
		if err := json.Unmarshal(b, &c); err != nil {
			return err
		}
		if c.Mode != fleet.TrustRequired || len(c.Keys) != len(ids) {
			return fmt.Errorf("mode %s, keys %v, want %v", c.Mode, c.Keys, ids)
		}
		return nil
	})
}

// tokenFor makes a claim token for devices with a label.
func (s *system) tokenFor(label string) string {
	s.t.Helper()
	var made struct{ Token string }
	if err := json.Unmarshal([]byte(s.must("enroll-token", "create", "--label", label, "-o", "json")), &made); err != nil {
		s.t.Fatal(err)
	}
	return made.Token
}

// refused runs the CLI, which must fail and say why.
func (s *system) refused(why string, args ...string) {
	s.t.Helper()
	if out, code := s.kernex(args...); code != 1 || !strings.Contains(out, why) {
		s.t.Errorf("kernex %v: exit %d: %s, want %q", args, code, out, why)
	}
}

func TestSignedBundlesFromKeygenToARefusedRollback(t *testing.T) {
	t.Parallel()
	dsn := testkit.Postgres(t)
	s := startUp(t, dataDir(t), nil, "--postgres", dsn)
	devices := s.agents(2)
	key, next := filepath.Join(t.TempDir(), "release"), filepath.Join(t.TempDir(), "next")
	var ids []string
	for _, k := range []string{key, next} {
		var made struct{ ID string }
		if err := json.Unmarshal([]byte(s.must("bundle", "keygen", "-f", k, "--no-password", "-o", "json")), &made); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, made.ID)
	}
	one, two, three := counted(t, "1.0.0", 1, 0), counted(t, "1.1.0", 2, 2), healthy120(t)
	deploy := func(version string) []string {
		return []string{"deploy", "--bundle", "edge-inference", "--version", version, "--selector", "fleet=test"}
	}
	if out := s.must("bundle", "push", one); !strings.Contains(out, "trust mode is open") {
		t.Errorf("no warning: %s", out)
	}
	s.must("bundle", "push", two)
	s.must(deploy("1.0.0")...)

	s.must("release-key", "add", key+".pub")
	for _, d := range devices {
		d.pins(ids[0])
	}
	s.refused("not signed", "bundle", "push", two)
	s.refused("sign the same release", deploy("1.1.0")...)
	s.refused("sign the same release", "rollback", "--version", "1.0.0", "--selector", "fleet=test")

	// One that comes later has the key from its enrolment.
	late := startAgent(t, t.TempDir(), s.addr.MQTT, s.tokenFor("fleet=test"))
	late.pins(ids[0])
	testkit.Eventually(t, patience, func() error {
		d, err := s.api.Device(t.Context(), late.id())
		if err == nil && d.Status != "online" {
			err = fmt.Errorf("device %s is %s", d.ID, d.Status)
		}
		return err
	})

	// A stolen orchestrator: whoever has the database takes its check away, and
	// the command key signs. The devices refuse, and say why.
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	claim := func(id string) {
		t.Helper()
		if _, err := db.ExecContext(t.Context(), `UPDATE bundles SET signed_by = $1`, id); err != nil {
			t.Fatal(err)
		}
	}
	claim(ids[0])
	s.refused("the bundle is not signed", deploy("1.1.0")...)
	serves(t, "1.0.0", devices[0].dir, devices[1].dir)
	claim("")

	for _, dir := range []string{one, two} {
		s.must("bundle", "sign", dir, "--key", key+".key")
		s.must("bundle", "push", dir)
	}
	s.must(deploy("1.1.0")...)
	serves(t, "1.1.0", devices[0].dir, devices[1].dir, late.dir)
	s.refused("below the device's floor 2", "rollback", "--version", "1.0.0", "--device", devices[0].id())
	serves(t, "1.1.0", devices[0].dir)

	// The key changes hands: the old one signs the new one and ends.
	s.must("release-key", "add", next+".pub", "--key", key+".key")
	s.must("release-key", "revoke", ids[0])
	for _, d := range append(devices, late) {
		d.pins(ids[1])
	}
	s.must("bundle", "sign", three, "--key", key+".key")
	s.refused("not trusted", "bundle", "push", three)
	s.must("bundle", "sign", three, "--key", next+".key")
	s.must("bundle", "push", three)
	s.must(deploy("1.2.0")...)
	// Back to what the old key signed, once the new one has signed it as well:
	// the signature comes with the command, the release is on the disk.
	s.refused("was revoked", "rollback", "--version", "1.1.0", "--selector", "fleet=test")
	s.must("bundle", "sign", two, "--key", next+".key")
	s.must("bundle", "push", two)
	s.must("rollback", "--version", "1.1.0", "--selector", "fleet=test")
	serves(t, "1.1.0", devices[0].dir, devices[1].dir, late.dir)
}
