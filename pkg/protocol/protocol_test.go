package protocol

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/fleet"
)

func testKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func deployCommand() Command {
	return Command{
		ID: "cmd-1", Device: "dev1", Seq: 5, ClosedThrough: 4, Type: CommandDeploy, IssuedAt: 1, NotAfter: 2,
		Deploy: &Deploy{Deployment: "dep-1", StepTimeoutS: 300, Bundle: BundleRef{
			Name: "b", Version: "1.0.0", Release: strings.Repeat("a", 64), Checksum: strings.Repeat("b", 64), Size: 1, URL: "https://x/?y=1",
		}},
	}
}

func TestASignedCommandOpensUnchangedAndOnlyByItsKey(t *testing.T) {
	t.Parallel()
	want := deployCommand()
	signed, err := SignCommand(want, testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenCommand(signed, testKey(1).Public().(ed25519.PublicKey))
	if err != nil || !cmp.Equal(got, want) {
		t.Fatalf("OpenCommand = %v, %s", err, cmp.Diff(want, got))
	}
	if _, err := OpenCommand(signed, testKey(2).Public().(ed25519.PublicKey)); fleet.ErrorCode(err) != fleet.CodeBadSignature {
		t.Fatalf("by another key: %v, want bad_signature", err)
	}
}

func TestAnyFlippedBitOfASignedCommandIsRefused(t *testing.T) {
	t.Parallel()
	signed, err := SignCommand(deployCommand(), testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	pub := testKey(1).Public().(ed25519.PublicKey)
	for i := range signed {
		for bit := range 8 {
			bad := bytes.Clone(signed)
			bad[i] ^= 1 << bit
			if _, err := OpenCommand(bad, pub); err == nil {
				t.Fatalf("bit %d of byte %d flipped: accepted", bit, i)
			}
		}
	}
}

func TestAHeaderThatNamesAnotherAlgorithmIsRefused(t *testing.T) {
	t.Parallel()
	key := testKey(1)
	payload, _ := json.Marshal(deployCommand())
	for _, head := range []string{`{"alg":"none"}`, `{"alg":"HS256"}`, `{}`, `x`} {
		enc := base64.RawURLEncoding.EncodeToString
		signing := enc([]byte(head)) + "." + enc(payload)
		token := signing + "." + enc(ed25519.Sign(key, []byte(signing)))
		if _, err := OpenCommand([]byte(token), key.Public().(ed25519.PublicKey)); fleet.ErrorCode(err) != fleet.CodeBadSignature {
			t.Errorf("header %s: %v, want bad_signature", head, err)
		}
	}
}

func TestACommandWithoutItsBodyIsNeitherSignedNorOpened(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Command){
		"no body":        func(c *Command) { c.Deploy = nil },
		"two bodies":     func(c *Command) { c.Cancel = &Cancel{Command: "x"} },
		"seq 0":          func(c *Command) { c.Seq = 0 },
		"already closed": func(c *Command) { c.ClosedThrough = c.Seq },
		"device":         func(c *Command) { c.Device = "../x" },
		"unknown type":   func(c *Command) { c.Type = "format-disk" },
		"short release":  func(c *Command) { c.Deploy.Bundle.Release = "abc" },
		"size 0":         func(c *Command) { c.Deploy.Bundle.Size = 0 },
		"bad config": func(c *Command) {
			c.Type, c.Deploy, c.Configure = CommandConfigure, nil, &Configure{Config: fleet.Config{HeartbeatIntervalS: -1}}
		},
	} {
		c := deployCommand()
		change(&c)
		if _, err := SignCommand(c, testKey(1)); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestACommandAboveItsCapIsRefused(t *testing.T) {
	t.Parallel()
	c := deployCommand()
	c.Deploy.Bundle.URL = strings.Repeat("u", KindCommand.Cap())
	if _, err := SignCommand(c, testKey(1)); fleet.ErrorCode(err) != fleet.CodeTooLarge {
		t.Fatalf("SignCommand = %v, want too_large", err)
	}
}

func TestADeployOfTheLargestBundleFitsInACommand(t *testing.T) {
	t.Parallel()
	c := deployCommand()
	c.Deploy.Bundle.URL = strings.Repeat("u", 2048)
	for range 64 {
		c.Deploy.Bundle.Parts = append(c.Deploy.Bundle.Parts, strings.Repeat("p", 43))
	}
	if _, err := SignCommand(c, testKey(1)); err != nil {
		t.Fatal(err)
	}
}

func TestTopicsParseToWhatTheyWereBuiltFrom(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		topics := NewTopics(rapid.SampledFrom([]string{"", "kernex/v1", "acme/fleet/x"}).Draw(t, "root"))
		id := rapid.StringMatching(`[a-z0-9][a-z0-9-]{0,62}`).Draw(t, "id")
		kind := rapid.SampledFrom([]Kind{KindHeartbeat, KindState, KindResult, KindLog, KindRequest, KindPresence, KindCommand, KindAck}).Draw(t, "kind")
		if k, got, ok := topics.Parse(topics.Device(id, kind)); !ok || k != kind || got != id {
			t.Fatalf("Parse(%s) = %s, %s, %v", topics.Device(id, kind), k, got, ok)
		}
		nonce := rapid.StringMatching(`[0-9a-f]{32}`).Draw(t, "nonce")
		if k, got, ok := topics.Parse(topics.EnrollRequest(nonce)); !ok || k != KindEnrollRequest || got != nonce {
			t.Fatalf("Parse(enrol) = %s, %s, %v", k, got, ok)
		}
	})
}

func TestForeignTopicsDoNotParse(t *testing.T) {
	t.Parallel()
	topics := NewTopics("")
	for _, topic := range []string{
		"", "kernex/v1", "kernex/v1/devices", "kernex/v1/devices/x", "kernex/v1/devices//state", "kernex/v1/devices/x/state/y",
		"kernex/v1/devices/X/state", "kernex/v1/devices/../state", "kernex/v2/devices/x/state", "kernex/v1/devices/x/shadow",
		"kernex/v1/enroll/short/request", "kernex/v1/enroll/" + strings.Repeat("G", 32) + "/request", "kernex/v1/devices/x/enroll/request",
	} {
		if k, id, ok := topics.Parse(topic); ok {
			t.Errorf("Parse(%q) = %s, %s", topic, k, id)
		}
	}
}

func TestMessagesOutOfBoundsAreRefused(t *testing.T) {
	t.Parallel()
	type message interface{ Validate() error }
	neg := -1.0
	for name, m := range map[string]message{
		"heartbeat session 0":      Heartbeat{Seq: 1},
		"heartbeat seq 0":          Heartbeat{Session: 1},
		"heartbeat status":         Heartbeat{Session: 1, Seq: 1, Status: "fine"},
		"heartbeat negative cpu":   Heartbeat{Session: 1, Seq: 1, CPUPct: &neg},
		"heartbeat long version":   Heartbeat{Session: 1, Seq: 1, AgentVersion: strings.Repeat("v", 64)},
		"state no status":          State{Session: 1},
		"state outcome":            State{Session: 1, Status: "healthy", ConfigOutcome: "maybe"},
		"state control characters": State{Session: 1, Status: "healthy", OS: "a\nb"},
		"result server's state":    Result{Command: "c", State: fleet.TargetExpired},
		"result no command":        Result{State: fleet.TargetFailed},
		"result NUL in output":     Result{Command: "c", State: fleet.TargetFailed, Output: "a\x00b"},
		"result bad UTF-8":         Result{Command: "c", State: fleet.TargetFailed, Error: &ErrorDetail{Code: "x", Message: "\xff"}},
		"request":                  Request{Want: "root"},
		"presence session 0":       Presence{},
	} {
		if m.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestTrimTextKeepsTheEndAndWhatPostgresCanStore(t *testing.T) {
	t.Parallel()
	if got := TrimText("start\x00\xffend", 6); got != "end" && got != "t"+"end" {
		t.Fatalf("TrimText = %q", got)
	}
}

func FuzzDecodeNeverPanicsAndHoldsItsCap(f *testing.F) {
	f.Add([]byte(`{"session":1,"seq":1,"state_rev":0}`))
	f.Add([]byte(`{"command":"c","state":"failed","error":{"code":"x","message":"y"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var h Heartbeat
		if err := Decode(KindHeartbeat, data, &h); err == nil && len(data) > KindHeartbeat.Cap() {
			t.Fatal("above the cap and decoded")
		}
		var s State
		if Decode(KindState, data, &s) == nil {
			_ = s.Validate()
		}
		var r Result
		if Decode(KindResult, data, &r) == nil {
			_ = r.Validate()
		}
	})
}

func FuzzOpenCommandAcceptsNothingUnsigned(f *testing.F) {
	signed, err := SignCommand(deployCommand(), testKey(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add([]byte("e30.e30.e30"))
	other := testKey(2).Public().(ed25519.PublicKey)
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := OpenCommand(data, other); err == nil {
			t.Fatal("accepted")
		}
	})
}
