// Package looptest sets the scene for tests of the orchestrator's loops: a real
// database with devices, bundles and deployments, and a wire that records what
// would go to the broker.
package looptest

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/postgres"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/schema"
)

// Scene is one test's database and wire.
type Scene struct {
	t      testing.TB
	DB     *postgres.DB
	DSN    string
	Topics protocol.Topics
	Wire   *Wire
	Key    ed25519.PrivateKey // the command key
}

// Open makes a scene with an empty database.
func Open(t testing.TB) *Scene {
	t.Helper()
	dsn := testkit.Postgres(t)
	db, err := postgres.Open(t.Context(), dsn, 16)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &Scene{t: t, DB: db, DSN: dsn, Topics: protocol.NewTopics(""), Wire: NewWire(), Key: key}
	t.Cleanup(s.checkMessages)
	return s
}

// checkMessages holds everything that was published against its schema.
func (s *Scene) checkMessages() {
	for _, m := range s.Wire.All() {
		name, payload := s.schema(m.Topic), m.Payload
		if len(payload) == 0 && m.Retain {
			continue // clears a retained topic
		}
		if name == "command" {
			part := bytes.Split(payload, []byte("."))
			if len(part) != 3 {
				s.t.Errorf("%s: no compact JWS: %.60s", m.Topic, payload)
				continue
			}
			payload, _ = base64.RawURLEncoding.DecodeString(string(part[1])) // what does not decode fits no schema
		}
		if err := schema.ValidateMessage(name, payload); err != nil {
			s.t.Errorf("%s: %s: %v", m.Topic, payload, err)
		}
	}
}

// schema names the schema of a topic that the orchestrator publishes on.
func (s *Scene) schema(topic string) string {
	kind, _, ok := s.Topics.Parse(topic)
	switch {
	case ok && kind == protocol.KindEnrollReply:
		return "enroll-reply"
	case ok:
		return string(kind)
	case topic == s.Topics.Time():
		return "time"
	case topic == s.Topics.FleetSummary():
		return "fleet-summary"
	case topic == s.Topics.FleetEvents():
		return "fleet-event"
	case strings.HasPrefix(topic, s.Topics.FleetDevice("")):
		return "fleet-device"
	case strings.HasPrefix(topic, s.Topics.FleetDeployment("")):
		return "fleet-deployment"
	}
	return topic
}

// Allow lets every device cause every event.
func Allow(string) bool { return true }

// Device registers an active device that has not connected yet.
func (s *Scene) Device() string {
	s.t.Helper()
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.Sum256(der)
	d, _, err := s.DB.RegisterDevice(s.t.Context(), fleet.Registration{}, der, sum[:], "ed25519", nil, fleet.System)
	if err != nil {
		s.t.Fatal(err)
	}
	return d.ID
}

// Online registers a device that has reported in its first session.
func (s *Scene) Online() string {
	s.t.Helper()
	id := s.Device()
	s.Birth(id, 1)
	return id
}

// Birth stores the first report of a device's session.
func (s *Scene) Birth(id string, session int64) {
	s.t.Helper()
	if _, err := s.DB.ApplyState(s.t.Context(), id, State(session), Allow); err != nil {
		s.t.Fatal(err)
	}
}

// State is the report of a healthy device that runs nothing.
func State(session int64) protocol.State {
	return protocol.State{Session: session, Boot: "boot-1", StateRev: 1, Status: "healthy", AgentVersion: "0.1.0", OS: "linux", Arch: "amd64"}
}

// Bundle stores a bundle's row; there is no archive behind it.
func (s *Scene) Bundle(name, version string) fleet.Bundle {
	s.t.Helper()
	manifest := fmt.Sprintf(`{"schema":1,"name":%q,"version":%q,"files":[{"path":"a"},{"path":"b"}]}`, name, version)
	release, checksum := sha256.Sum256([]byte(manifest)), sha256.Sum256([]byte(manifest+"archive"))
	b, _, err := s.DB.CreateBundle(s.t.Context(), fleet.Bundle{
		ID: fleet.NewID("bun"), Name: name, Version: version, Release: hex.EncodeToString(release[:]), Checksum: hex.EncodeToString(checksum[:]),
		Size: 1000, Expanded: 3000, ObjectKey: "bundles/" + hex.EncodeToString(checksum[:]), Manifest: json.RawMessage(manifest),
		PartSize: 1 << 20, Parts: []string{hex.EncodeToString(checksum[:])},
	}, fleet.System)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// Deploy creates a deployment of b to devices.
func (s *Scene) Deploy(b fleet.Bundle, devices ...string) string {
	s.t.Helper()
	d, err := s.DB.CreateDeployment(s.t.Context(), fleet.DeploymentRequest{Bundle: b.Name, Version: b.Version, Devices: devices}, fleet.System)
	if err != nil {
		s.t.Fatal(err)
	}
	return d.ID
}

// Deployment reads a deployment.
func (s *Scene) Deployment(id string) fleet.Deployment {
	s.t.Helper()
	d, err := s.DB.Deployment(s.t.Context(), id, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// Targets reads a deployment's targets by device.
func (s *Scene) Targets(id string) map[string]fleet.Target {
	s.t.Helper()
	list, err := s.DB.Targets(s.t.Context(), id, nil, "", fleet.Page{Limit: 1000})
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[string]fleet.Target{}
	for _, t := range list.Items {
		out[t.DeviceID] = t
	}
	return out
}

// Report stores one result of a device and returns its acknowledgement, nil for
// none.
func (s *Scene) Report(device string, r protocol.Result) *protocol.ResultAck {
	s.t.Helper()
	acks, err := s.DB.ApplyResults(s.t.Context(), []string{device}, []protocol.Result{r})
	if err != nil {
		s.t.Fatal(err)
	}
	return acks[0]
}
