package fieldtest

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

const device = "fieldtest001" // as long as the ids that the orchestrator gives

// server is the other side of one device: it enrols whoever asks, acknowledges
// everything and sends an open command again at each connection and request.
type server struct {
	t      testing.TB
	broker *brokertest.Server
	topics protocol.Topics
	key    ed25519.PrivateKey
	config fleet.Config

	mu      sync.Mutex
	changed chan struct{} // closed and replaced whenever something was noted
	open    *protocol.Command
	seq     int64
	beats   int
	births  int // connections that reported state
	session int64
	results []protocol.Result
	states  int
}

func newServer(t testing.TB) *server {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, topics: protocol.NewTopics(""), key: key, config: fleet.DefaultConfig(), changed: make(chan struct{})}
	s.broker = brokertest.Start(t, s, s)
	return s
}

// Authorize implements broker.Authorizer.
func (s *server) Authorize(_ context.Context, l broker.Login) (broker.Grant, error) {
	return broker.Grant{Role: broker.RoleDevice, ID: l.Username}, nil
}

// Receive implements broker.Ingest.
func (s *server) Receive(topic string, payload []byte) {
	kind, id, _ := s.topics.Parse(topic)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch kind {
	case protocol.KindEnrollRequest:
		var m protocol.EnrollRequest
		if json.Unmarshal(payload, &m) == nil {
			s.answer(s.topics.EnrollReply(id), s.enroll(m))
		}
	case protocol.KindHeartbeat:
		s.beats++
	case protocol.KindState:
		var m protocol.State
		if json.Unmarshal(payload, &m) != nil {
			return
		}
		s.states++
		if m.Session > s.session {
			s.session = m.Session
			s.births++
			s.deliver()
		}
		s.answer(s.topics.Device(id, protocol.KindAck), protocol.Ack{Time: time.Now().Unix()})
	case protocol.KindRequest:
		s.deliver()
	case protocol.KindResult:
		var m protocol.Result
		if json.Unmarshal(payload, &m) != nil {
			return
		}
		s.results = append(s.results, m)
		if m.State.Final() {
			s.open = nil
			s.answer(s.topics.Device(id, protocol.KindAck), protocol.Ack{Time: time.Now().Unix(),
				Results: []protocol.ResultAck{{Command: m.Command, State: m.State, Accepted: true}}})
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *server) enroll(m protocol.EnrollRequest) protocol.EnrollReply {
	if m.Challenge == "" {
		return protocol.EnrollReply{Challenge: "c", Time: time.Now().Unix()}
	}
	return protocol.EnrollReply{
		Time: time.Now().Unix(), DeviceID: device, RegistrationToken: "r", Status: "active", Fleet: "field", TrustMode: "open",
		CommandKey: base64.RawURLEncoding.EncodeToString(s.key.Public().(ed25519.PublicKey)), Config: &s.config,
	}
}

// answer publishes from another goroutine: Receive must not block the broker.
func (s *server) answer(topic string, m any) {
	payload, err := json.Marshal(m)
	if err != nil {
		s.t.Error(err)
		return
	}
	go func() { _ = s.broker.Publish(context.Background(), topic, payload, 1, false) }()
}

// deliver sends the open command, if there is one.
func (s *server) deliver() {
	if s.open == nil {
		return
	}
	payload, err := protocol.SignCommand(*s.open, s.key)
	if err != nil {
		s.t.Error(err)
		return
	}
	go func() {
		_ = s.broker.Publish(context.Background(), s.topics.Device(device, protocol.KindCommand), payload, 1, false)
	}()
}

// order makes a command the open one.
func (s *server) order(c protocol.Command) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seq++
	now := time.Now()
	c.ID, c.Device, c.Seq, c.IssuedAt, c.NotAfter = fleet.NewID("cmd"), device, s.seq, now.Unix(), now.Add(24*time.Hour).Unix()
	s.open = &c
	s.deliver()
	return c.ID
}

// configure puts a configuration into force.
func (s *server) configure(change func(*fleet.Config)) {
	s.config.Version++
	change(&s.config)
	s.ended(s.order(protocol.Command{Type: protocol.CommandConfigure, Configure: &protocol.Configure{Config: s.config}}), time.Minute)
}

// ended waits for the end of a command.
func (s *server) ended(command string, limit time.Duration) (r protocol.Result) {
	s.t.Helper()
	s.await("the end of "+command, limit, func() bool {
		i := slices.IndexFunc(s.results, func(r protocol.Result) bool { return r.Command == command && r.State.Final() })
		if i >= 0 {
			r = s.results[i]
		}
		return i >= 0
	})
	return r
}

// await waits until ok holds, which runs under the lock.
func (s *server) await(what string, limit time.Duration, ok func() bool) {
	s.t.Helper()
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	for {
		s.mu.Lock()
		done, changed := ok(), s.changed
		s.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			s.t.Fatalf("waited %s in vain for %s; results %+v", limit, what, s.results)
		}
	}
}

// pack builds a bundle of about that many bytes, which gzip does not make
// smaller.
func (s *server) pack(size int, part int64) (protocol.BundleRef, []byte) {
	s.t.Helper()
	dir := s.t.TempDir()
	err := os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(`{"schema":1,"name":"field","version":"1.0.0","deploy":{"script":"deploy.sh"}}`), 0o600)
	err = errors.Join(err, os.WriteFile(filepath.Join(dir, "deploy.sh"), []byte("#!/bin/sh\nexec cmp data data\n"), 0o700)) //nolint:gosec // a script
	err = errors.Join(err, os.WriteFile(filepath.Join(dir, "data"), noise(size), 0o600))
	var out strings.Builder
	info, berr := bundle.Build(dir, &out, bundle.Limits{})
	if err = errors.Join(err, berr); err != nil {
		s.t.Fatal(err)
	}
	data := []byte(out.String())
	ref := refTo(data, part)
	ref.Name, ref.Version, ref.Release, ref.Expanded, ref.Files = "field", "1.0.0", info.Release, info.Expanded, len(info.Manifest.Files)
	return ref, data
}

// refTo describes an archive.
func refTo(data []byte, part int64) protocol.BundleRef {
	sum := sha256.Sum256(data)
	ref := protocol.BundleRef{Checksum: hex.EncodeToString(sum[:]), Size: int64(len(data)), PartSize: part}
	for p := range slices.Chunk(data, int(part)) {
		d := sha256.Sum256(p)
		ref.Parts = append(ref.Parts, base64.RawURLEncoding.EncodeToString(d[:]))
	}
	return ref
}
