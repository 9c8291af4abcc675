package ingest

import (
	"bytes"
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func sealed(t testing.TB) *Ingest {
	t.Helper()
	i, err := New(Config{CommandKey: make(ed25519.PublicKey, ed25519.PublicKeySize), SealKey: bytes.Repeat([]byte{1}, 32), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// FuzzChallenge looks for a challenge that counts on a connection or for a key
// that it was not made for.
func FuzzChallenge(f *testing.F) {
	i := sealed(f)
	now := time.Unix(1_700_000_000, 0)
	good := i.challenge("nonce", "key", now)
	f.Add(good, "nonce", "key")
	f.Add(good, "nonc", "ekey")
	f.Add("", "", "")
	f.Fuzz(func(t *testing.T, challenge, nonce, key string) {
		if err := i.checkChallenge(challenge, nonce, key, now); err == nil && (nonce != "nonce" || key != "key") {
			t.Fatalf("%q counts for %q and %q", challenge, nonce, key)
		}
	})
}

// FuzzPresence looks for a payload that breaks the merge of heartbeats.
func FuzzPresence(f *testing.F) {
	f.Add([]byte(`{"session":1,"seq":1,"state_rev":0,"cpu_pct":1.5}`), []byte(`{"online":false,"session":1}`))
	f.Add([]byte(`{"session":9223372036854775807,"seq":1}`), []byte(`{"session":2}`))
	f.Fuzz(func(t *testing.T, heartbeat, presence []byte) {
		b := newBeats(10, 10)
		for _, m := range []message{{protocol.KindHeartbeat, "d", heartbeat}, {protocol.KindPresence, "d", presence}, {protocol.KindHeartbeat, "d", heartbeat}} {
			beat, err := decodeBeat(m)
			if err == nil && beat != (fleet.Beat{}) {
				b.add(beat)
			}
		}
		for _, got := range b.take(10) {
			if got.Gone != 0 && got.Gone < got.Session || got.Session < 0 || got.Session == 0 && got.Gone == 0 {
				t.Fatalf("merged to %+v", got)
			}
		}
	})
}

func TestChallengeCountsForOneMinuteOnItsConnectionOnly(t *testing.T) {
	t.Parallel()
	i := sealed(t)
	now := time.Now()
	c := i.challenge("nonce", "key", now)
	for name, ok := range map[string]bool{
		"at once":         i.checkChallenge(c, "nonce", "key", now) == nil,
		"after 59 s":      i.checkChallenge(c, "nonce", "key", now.Add(59*time.Second)) == nil,
		"another replica": sealed(t).checkChallenge(c, "nonce", "key", now) == nil,
	} {
		if !ok {
			t.Errorf("%s it does not count", name)
		}
	}
	for name, err := range map[string]error{
		"after 62 s":    i.checkChallenge(c, "nonce", "key", now.Add(62*time.Second)),
		"another nonce": i.checkChallenge(c, "nonce2", "key", now),
		"another key":   i.checkChallenge(c, "nonce", "key2", now),
	} {
		if fleet.ErrorCode(err) != fleet.CodeUnauthorized {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMergeKeepsWhatTheNewerHeartbeatLeavesOut(t *testing.T) {
	t.Parallel()
	one, two := 1.0, 2.0
	got := merge(fleet.Beat{DeviceID: "d", Session: 1, Seq: 1, Status: "error", CPUPct: &one, MemoryMB: &one}, fleet.Beat{DeviceID: "d", Session: 1, Seq: 3, CPUPct: &two})
	if got.Seq != 3 || got.Status != "error" || *got.CPUPct != 2 || *got.MemoryMB != 1 {
		t.Fatalf("%+v", got)
	}
	if stale := merge(got, fleet.Beat{DeviceID: "d", Session: 1, Seq: 2, Status: "healthy"}); stale.Status != "error" || stale.Seq != 3 {
		t.Fatalf("an older heartbeat counts: %+v", stale)
	}
}
