package agent_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func signingKey(t *testing.T) bundle.SigningKey {
	t.Helper()
	key, err := bundle.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// entry is a key of a trust command, signed by the one before it.
func entry(t *testing.T, key bundle.SigningKey, by *bundle.SigningKey) protocol.TrustKey {
	t.Helper()
	k := protocol.TrustKey{File: string(key.Public().File())}
	if by != nil {
		sig, err := by.Sign([]byte(k.File), time.Now(), "key change")
		if err != nil {
			t.Fatal(err)
		}
		k.Signature = string(sig)
	}
	return k
}

// trust sends a trust command and returns how it ended.
func (o *orchestrator) trust(d *device, body protocol.Trust) protocol.Result {
	o.t.Helper()
	c := o.command(d.DeviceID(), protocol.CommandTrust)
	c.Trust = &body
	o.send(c, o.key)
	return o.final(c.ID)
}

func required(revoked []bundle.SigningKey, keys ...protocol.TrustKey) protocol.Trust {
	t := protocol.Trust{Mode: fleet.TrustRequired, Keys: keys}
	for _, k := range revoked {
		t.Revoked = append(t.Revoked, k.Public().ID())
	}
	return t
}

// sign signs the release of ref, whose archive the test has packed.
func (o *orchestrator) sign(ref protocol.BundleRef, key bundle.SigningKey) []byte {
	o.t.Helper()
	o.mu.Lock()
	archive := o.files[ref.Checksum]
	o.mu.Unlock()
	info, err := bundle.Verify(bytes.NewReader(archive), bundle.Limits{})
	if err != nil {
		o.t.Fatal(err)
	}
	sig, err := key.Sign(info.ManifestBytes, time.Now(), "file:manifest.json")
	if err != nil {
		o.t.Fatal(err)
	}
	return sig
}

// carrying returns ref with sig in the archive.
func (o *orchestrator) carrying(ref protocol.BundleRef, sig []byte) protocol.BundleRef {
	o.t.Helper()
	o.mu.Lock()
	archive := o.files[ref.Checksum]
	o.mu.Unlock()
	var out bytes.Buffer
	if _, err := bundle.ReplaceSignature(bytes.NewReader(archive), &out, sig, bundle.Limits{}); err != nil {
		o.t.Fatal(err)
	}
	sum := sha256.Sum256(out.Bytes())
	ref.Checksum, ref.Size, ref.PartSize, ref.Parts = hex.EncodeToString(sum[:]), int64(out.Len()), 0, nil
	o.edit(func() { o.files[ref.Checksum] = out.Bytes() })
	ref.URL = o.archives.URL + "/" + ref.Checksum
	return ref
}

// pinned is what the device's file says.
func (d *device) pinned(t *testing.T) (mode string, keys []string, text string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.dir, "device_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct {
		Mode string   `json:"trust_mode"`
		Keys []string `json:"release_keys"`
	}
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c.Mode, c.Keys, string(b)
}

func refusedFor(t *testing.T, what string, r protocol.Result, code fleet.Code, words string) {
	t.Helper()
	if r.State != fleet.TargetFailed && r.State != fleet.TargetRejected || r.Error == nil || r.Error.Code != code || !strings.Contains(r.Error.Message, words) {
		t.Errorf("%s: %+v, want %s with %q", what, r, code, words)
	}
}

func TestOnceSignaturesAreRequiredNothingElseIsInstalled(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	key, foreign := signingKey(t), signingKey(t)
	if r := o.run(d.DeviceID(), o.pack("1.0.0", manifest, good())); r.State != fleet.TargetSucceeded {
		t.Fatalf("in mode open: %+v", r)
	}
	if r := o.trust(d, required(nil, entry(t, key, nil))); r.State != fleet.TargetSucceeded {
		t.Fatalf("the first key: %+v", r)
	}
	o.await("the pinned key in the state report", func() bool {
		s := o.states[len(o.states)-1]
		return s.TrustMode == fleet.TrustRequired && slices.Equal(s.ReleaseKeys, []string{key.Public().ID()})
	})
	// A stolen orchestrator: its commands are signed well, the bundles are not.
	before := d.current(t)
	ref := o.pack("2.0.0", `"counter":1,`+manifest, good())
	sig := o.sign(ref, key)
	refusedFor(t, "unsigned", o.run(d.DeviceID(), ref), fleet.CodeBadSignature, "not signed")
	refusedFor(t, "foreign key", o.run(d.DeviceID(), o.carrying(ref, o.sign(ref, foreign))), fleet.CodeBadSignature, "not trusted")
	refusedFor(t, "another release's signature", o.run(d.DeviceID(), o.carrying(ref, o.sign(o.pack("2.0.1", `"counter":1,`+manifest, good()), key))), fleet.CodeBadSignature, "does not match")
	other := ref
	other.Signature = string(bytes.Replace(sig, []byte("\n"), []byte("x\n"), 2))
	refusedFor(t, "a damaged one in the command", o.run(d.DeviceID(), other), fleet.CodeBadSignature, "")
	free := o.pack("2.0.2", manifest, good())
	free.Signature = string(o.sign(free, key))
	refusedFor(t, "without a counter", o.run(d.DeviceID(), free), fleet.CodeBadSignature, "no counter")
	refusedFor(t, "back to open", o.trust(d, protocol.Trust{Mode: fleet.TrustOpen}), fleet.CodeConflict, "requires signatures")
	if now := d.current(t); now != before {
		t.Errorf("current is %s, was %s", now, before)
	}
	if r := o.run(d.DeviceID(), o.carrying(ref, sig)); r.State != fleet.TargetSucceeded {
		t.Errorf("signed in the archive: %+v", r)
	}
	next := o.pack("2.1.0", `"counter":2,`+manifest, good())
	next.Signature = string(o.sign(next, key))
	if r := o.run(d.DeviceID(), next); r.State != fleet.TargetSucceeded {
		t.Errorf("signed in the command: %+v", r)
	}
	// The keys are on the disk: a restart does not open the device.
	d.stop()
	o.edit(func() { o.states = nil })
	d = start(o, config(o, d.dir))
	o.await("a state report after the restart", func() bool { return len(o.states) > 0 })
	refusedFor(t, "after a restart", o.run(d.DeviceID(), o.pack("3.0.0", `"counter":3,`+manifest, good())), fleet.CodeBadSignature, "not signed")
}

func TestADeviceWhosePinnedKeyCannotBeReadInstallsNothing(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	key := signingKey(t)
	o.trust(d, required(nil, entry(t, key, nil)))
	_, keys, text := d.pinned(t)
	d.stop()
	for name, damaged := range map[string]string{
		"unreadable": strings.Replace(text, keys[0], "RWrubbish", 1),
		"none":       strings.Replace(text, `"`+keys[0]+`"`, "", 1),
		"mode":       strings.Replace(text, `"trust_mode": "required"`, `"trust_mode": "requird"`, 1),
	} {
		if err := os.WriteFile(filepath.Join(d.dir, "device_config.json"), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		o.edit(func() { o.states = nil })
		d = start(o, config(o, d.dir))
		o.await("a state report", func() bool { return len(o.states) > 0 })
		ref := o.pack("1.0.0", `"counter":1,`+manifest, good())
		if name != "mode" {
			ref.Signature = string(o.sign(ref, key))
		}
		refusedFor(t, name, o.run(d.DeviceID(), ref), fleet.CodeBadSignature, "")
		d.stop()
	}
}

func TestReleaseKeysChangeOnlyByKeysThatArePinned(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	a, b, c, thief := signingKey(t), signingKey(t), signingKey(t), signingKey(t)
	first, second, third := entry(t, a, nil), entry(t, b, &a), entry(t, c, &b)
	pinned := func(what string, want ...bundle.SigningKey) {
		t.Helper()
		mode, keys, _ := d.pinned(t)
		var lines []string
		for _, k := range want {
			lines = append(lines, k.Public().String())
		}
		if mode != fleet.TrustRequired || !slices.Equal(keys, lines) {
			t.Errorf("%s: %s %v, want %v", what, mode, keys, lines)
		}
	}
	if r := o.trust(d, required(nil, first)); r.State != fleet.TargetSucceeded {
		t.Fatalf("%+v", r)
	}
	for what, body := range map[string]protocol.Trust{
		"a key that nobody signed":      required(nil, first, entry(t, thief, nil)),
		"a key that signed itself":      required(nil, first, entry(t, thief, &thief)),
		"a key by one that comes after": required(nil, first, third, second),
		"another first key":             required([]bundle.SigningKey{a}, entry(t, thief, nil)),
	} {
		refusedFor(t, what, o.trust(d, body), fleet.CodeBadSignature, "")
		pinned(what, a)
	}
	// Two changes at once, and the first key ends.
	if r := o.trust(d, required([]bundle.SigningKey{a}, first, second, third)); r.State != fleet.TargetSucceeded {
		t.Errorf("a chain of two: %+v", r)
	}
	pinned("a chain of two", b, c)
	// The thief has the old key and the orchestrator.
	refusedFor(t, "by the revoked key", o.trust(d, required([]bundle.SigningKey{b, c}, first, entry(t, thief, &a))), fleet.CodeBadSignature, "")
	refusedFor(t, "the revoked key again", o.trust(d, required([]bundle.SigningKey{b, c}, entry(t, a, &b))), fleet.CodeBadSignature, "no release key would be left")
	pinned("after the thief", b, c)
	ref := o.pack("1.0.0", `"counter":1,`+manifest, good())
	ref.Signature = string(o.sign(ref, a))
	refusedFor(t, "a bundle by the revoked key", o.run(d.DeviceID(), ref), fleet.CodeBadSignature, "not trusted")
	ref.Signature = string(o.sign(ref, c))
	if r := o.run(d.DeviceID(), ref); r.State != fleet.TargetSucceeded {
		t.Errorf("a bundle by the newest key: %+v", r)
	}
}

func TestCountersGoBackByRollbackOnlyAndNeverBelowTheFloor(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	key := signingKey(t)
	o.trust(d, required(nil, entry(t, key, nil)))
	release := func(counter, floor int, extra string) protocol.BundleRef {
		ref := o.pack(fmt.Sprintf("%d.0.0", counter), fmt.Sprintf(`"counter":%d,"min_counter":%d,%s%s`, counter, floor, extra, manifest), good())
		ref.Signature = string(o.sign(ref, key))
		return ref
	}
	back := func(ref protocol.BundleRef) protocol.Result {
		c := o.deploy(d.DeviceID(), ref)
		c.Type = protocol.CommandRollback
		o.send(c, o.key)
		return o.final(c.ID)
	}
	one, two, three := release(1, 0, ""), release(2, 2, ""), release(3, 1, "")
	for _, ref := range []protocol.BundleRef{one, two, three} {
		if r := o.run(d.DeviceID(), ref); r.State != fleet.TargetSucceeded {
			t.Fatalf("%s: %+v", ref.Version, r)
		}
	}
	refusedFor(t, "deploy of an older counter", o.run(d.DeviceID(), two), fleet.CodeConflict, "only a rollback may go back")
	refusedFor(t, "rollback below the floor", back(one), fleet.CodeConflict, "below the device's floor 2")
	if r := back(two); r.State != fleet.TargetSucceeded {
		t.Errorf("rollback to the floor: %+v", r)
	}
	d.stop()
	o.edit(func() { o.states = nil })
	d = start(o, config(o, d.dir))
	o.await("a state report after the restart", func() bool { return len(o.states) > 0 })
	refusedFor(t, "the floor after a restart", back(one), fleet.CodeConflict, "below the device's floor 2")
	refusedFor(t, "a release that has ended", o.run(d.DeviceID(), release(9, 0, `"not_after":"2020-01-01T00:00:00Z",`)), fleet.CodeConflict, "not_after")
}

func TestACommandKeyIsReplacedByACommandOfTheOldOne(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	public, next, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	body := protocol.Trust{Mode: fleet.TrustOpen, CommandKey: protocol.CommandKeyText(public)}
	forged := o.command(d.DeviceID(), protocol.CommandTrust)
	forged.Trust = &body
	o.send(forged, stranger)
	o.send(forged, next)
	if r := o.trust(d, body); r.State != fleet.TargetSucceeded {
		t.Fatalf("%+v", r)
	}
	o.await("the new key in the state report", func() bool { return o.states[len(o.states)-1].CommandKey == body.CommandKey })
	end := func(key ed25519.PrivateKey) protocol.Command {
		c := o.command(d.DeviceID(), protocol.CommandRotateKey)
		o.send(c, key)
		return c
	}
	o.final(end(o.key).ID) // still on its way when the change was made
	o.final(end(next).ID)
	late := end(o.key) // the old key ends with the first command of the new one
	o.final(end(next).ID)
	o.edit(func() {
		for _, r := range o.results {
			if r.Command == late.ID || r.Command == forged.ID && r.State == fleet.TargetSucceeded {
				t.Errorf("a command by a key that does not count was answered: %+v", r)
			}
		}
	})
}
