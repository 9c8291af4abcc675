package systemtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/mqttclient"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/tlsfile"
	"github.com/kernexhq/kernex/schema"
)

// wire is everything that passes the broker from now on.
type wire struct {
	t      *testing.T
	topics protocol.Topics
	client *mqttclient.Client

	mu   sync.Mutex
	seen []message
}

type message struct {
	topic, schema string
	payload       []byte // of a command: what is signed
}

// listen subscribes to everything, as service may.
func (l *lab) listen() *wire {
	t := l.t
	t.Helper()
	tok, err := l.at(0).api.CreateToken(t.Context(), client.NewToken{Name: "listener", Role: fleet.RoleService})
	if err != nil {
		t.Fatal(err)
	}
	roots, err := tlsfile.Roots(l.ca.file)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, topics: protocol.NewTopics("")}
	w.client, err = mqttclient.Dial(t.Context(), mqttclient.Options{
		Broker: "mqtts://" + l.broker.host.addr + ":8883", ClientID: "listener", Username: "service", Password: tok.Token,
		TLS: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, OnMessage: w.receive, Queue: 4096,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.client.Close(context.Background()) })
	if err := w.client.Subscribe(t.Context(), w.topics.Root+"/#", 1); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *wire) receive(topic string, payload []byte) {
	m := message{topic: topic, schema: w.schema(topic), payload: payload}
	if m.schema == "command" {
		if part := bytes.Split(payload, []byte(".")); len(part) == 3 {
			m.payload, _ = base64.RawURLEncoding.DecodeString(string(part[1])) // what does not decode fits no schema
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, m)
}

// schema names the schema of a topic, "" if its messages need none.
func (w *wire) schema(topic string) string {
	kind, _, ok := w.topics.Parse(topic)
	_, kick := w.topics.ParseKick(topic)
	switch {
	case kick:
		return ""
	case ok:
		return strings.ReplaceAll(string(kind), "/", "-")
	case topic == w.topics.Time():
		return "time"
	case topic == w.topics.FleetSummary():
		return "fleet-summary"
	case topic == w.topics.FleetEvents():
		return "fleet-event"
	case strings.HasPrefix(topic, w.topics.FleetDevice("")):
		return "fleet-device"
	case strings.HasPrefix(topic, w.topics.FleetDeployment("")):
		return "fleet-deployment"
	}
	return topic // which no schema is named like
}

func (w *wire) all() []message {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]message(nil), w.seen...)
}

// commands lists those that went to devices.
func (w *wire) commands() (out []protocol.Command) {
	w.t.Helper()
	for _, m := range w.all() {
		if m.schema != "command" {
			continue
		}
		var c protocol.Command
		if err := json.Unmarshal(m.payload, &c); err != nil {
			w.t.Errorf("%s: %v", m.topic, err)
		}
		out = append(out, c)
	}
	return out
}

// check holds every message against its schema, and sees that the usual kinds
// were among them.
func (w *wire) check() {
	w.t.Helper()
	seen := map[string]int{}
	for _, m := range w.all() {
		if m.schema == "" || len(m.payload) == 0 && strings.HasPrefix(m.schema, "fleet-") { // clears a retained topic
			continue
		}
		seen[m.schema]++
		if err := schema.ValidateMessage(m.schema, m.payload); err != nil {
			w.t.Errorf("%s: %s: %v", m.topic, m.payload, err)
		}
	}
	for _, want := range []string{"enroll-request", "enroll-reply", "heartbeat", "state", "result", "command", "ack", "fleet-summary", "fleet-event", "fleet-device", "fleet-deployment"} {
		if seen[want] == 0 {
			w.t.Errorf("no %s passed the broker", want)
		}
	}
	if err := w.client.Err(); err != nil || w.client.Dropped() > 0 {
		w.t.Errorf("the listener missed messages: %v, %d dropped", err, w.client.Dropped())
	}
	w.t.Logf("messages by schema: %v", seen)
}

// refused reports whether a result of the device was, with the code.
func (w *wire) refused(id string, code fleet.Code) bool {
	for _, m := range w.all() {
		if m.topic != w.topics.Device(id, protocol.KindAck) {
			continue
		}
		var a protocol.Ack
		if err := json.Unmarshal(m.payload, &a); err != nil {
			w.t.Errorf("%s: %v", m.topic, err)
		}
		for _, r := range a.Results {
			if !r.Accepted && r.Code == code {
				return true
			}
		}
	}
	return false
}
