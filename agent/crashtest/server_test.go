package crashtest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/protocol"
)

const (
	fleetName  = "crash-test"
	claimToken = "claim"
	// resendEvery is dispatch's backoff, shortened: an open command comes again.
	resendEvery = 300 * time.Millisecond
)

// server is the devices' other side: it enrols, sends open commands until they
// have a result, and acknowledges.
type server struct {
	broker   *brokertest.Server
	topics   protocol.Topics
	key      ed25519.PrivateKey
	archives *httptest.Server
	files    map[string][]byte // written before any device starts

	mu      sync.Mutex
	views   map[string]*view              // by device id
	keys    map[string]identity.PublicKey // by device id
	ids     map[string]string             // by the key's hash
	serials map[string]*view
}

func newServer(t *testing.T) *server {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{topics: protocol.NewTopics(""), key: key, files: map[string][]byte{}, views: map[string]*view{}, keys: map[string]identity.PublicKey{}, ids: map[string]string{}, serials: map[string]*view{}}
	s.archives = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.files[strings.TrimPrefix(r.URL.Path, "/")]))
	}))
	t.Cleanup(s.archives.Close)
	s.broker = brokertest.Start(t, s, s, func(c *broker.Config) { c.EnrollRate, c.EnrollBurst = 1e6, 1e6 })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.resend(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

// resend sends every open command again, now and then.
func (s *server) resend(ctx context.Context) {
	tick := time.NewTicker(resendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		views := make([]*view, 0, len(s.serials))
		for _, v := range s.serials {
			views = append(views, v)
		}
		s.mu.Unlock()
		for _, v := range views {
			v.mu.Lock()
			v.sendOpen()
			v.mu.Unlock()
		}
	}
}

func (s *server) view(id string) (*view, identity.PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.views[id], s.keys[id]
}

// Authorize implements broker.Authorizer.
func (s *server) Authorize(_ context.Context, l broker.Login) (broker.Grant, error) {
	v, key := s.view(l.Username)
	if v == nil {
		return broker.Grant{}, fleet.Errorf(fleet.CodeUnauthorized, "unknown device")
	}
	if err := identity.VerifyDeviceToken(string(l.Password), key, l.Username, fleetName, time.Now()); err != nil {
		return broker.Grant{}, fleet.Wrap(fleet.CodeUnauthorized, err, "bad token")
	}
	v.is(l.Username)
	return broker.Grant{Role: broker.RoleDevice, ID: l.Username}, nil
}

// Receive implements broker.Ingest.
func (s *server) Receive(topic string, payload []byte) {
	kind, id, ok := s.topics.Parse(topic)
	if !ok {
		return
	}
	if kind == protocol.KindEnrollRequest {
		var m protocol.EnrollRequest
		if err := protocol.Decode(kind, payload, &m); err == nil {
			s.publish(s.topics.EnrollReply(id), s.enroll(id, m))
		}
		return
	}
	if v, _ := s.view(id); v != nil {
		v.receive(kind, payload)
	}
}

func (s *server) enroll(nonce string, m protocol.EnrollRequest) protocol.EnrollReply {
	refuse := func(err error) protocol.EnrollReply {
		return protocol.EnrollReply{Time: time.Now().Unix(), Error: &protocol.ErrorDetail{Code: fleet.CodeUnavailable, Message: err.Error()}}
	}
	if m.Challenge == "" {
		return protocol.EnrollReply{Challenge: "challenge-of-" + nonce, Time: time.Now().Unix()}
	}
	key, err := identity.ParsePublicKeyPEM([]byte(m.PublicKey))
	if err != nil {
		return refuse(err)
	}
	sig, _ := base64.RawURLEncoding.DecodeString(m.Signature)
	if err := identity.VerifyEnroll(key, m.Challenge, nonce, sig); err != nil {
		return refuse(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	id, known := s.ids[key.Hash()]
	if !known {
		v := s.serials[m.Serial]
		if v == nil {
			return refuse(fmt.Errorf("no device has the serial %q", m.Serial))
		}
		id = fleet.NewDeviceID()
		s.ids[key.Hash()], s.keys[id], s.views[id] = id, key, v
	}
	config := fleet.DefaultConfig()
	return protocol.EnrollReply{
		Time: time.Now().Unix(), DeviceID: id, RegistrationToken: "receipt", Status: "active", Fleet: fleetName, TrustMode: "open",
		CommandKey: base64.RawURLEncoding.EncodeToString(s.key.Public().(ed25519.PublicKey)), Config: &config,
	}
}

// publish answers from another goroutine: Receive must not block the broker.
func (s *server) publish(topic string, m any) {
	payload, err := json.Marshal(m)
	if err != nil {
		panic(err) // our own message
	}
	s.publishRaw(topic, payload)
}

func (s *server) publishRaw(topic string, payload []byte) {
	go func() { _ = s.broker.Publish(context.Background(), topic, payload, 1, false) }()
}

// event is something the server has stored of a device.
type event struct {
	state  *protocol.State
	result *protocol.Result // terminal
}

// view is what the server knows of one device.
type view struct {
	server *server

	mu       sync.Mutex
	changed  chan struct{}   // closed and replaced with each event
	id       string          // it connected as that last
	used     map[string]bool // ids since the point began
	seq      int64
	commands []protocol.Command // all of this point
	events   []event
	born     int      // events before this life
	gone     int64    // session that has ended last, by will or goodbye
	problems []string // what a device must never say
}

func newView(s *server) *view {
	return &view{server: s, changed: make(chan struct{}), used: map[string]bool{}, seq: 100}
}

// is notes who the device says it is. One that starts from nothing is a new
// device, to which the commands are addressed from then on.
func (v *view) is(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.id, v.used[id] = id, true
	for i := range v.commands {
		v.commands[i].Device = id
	}
}

func (v *view) receive(kind protocol.Kind, payload []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch kind {
	case protocol.KindState:
		var m protocol.State
		if err := protocol.Decode(kind, payload, &m); err != nil {
			v.problems = append(v.problems, err.Error())
			return
		}
		last := v.lastState()
		if last != nil && m.Session < last.Session {
			v.problems = append(v.problems, fmt.Sprintf("I5: session %d after %d", m.Session, last.Session))
		}
		if last != nil && m.HighestSeq < last.HighestSeq {
			v.problems = append(v.problems, fmt.Sprintf("I5: highest seq %d after %d", m.HighestSeq, last.HighestSeq))
		}
		v.events = append(v.events, event{state: &m})
		v.server.publish(v.server.topics.Device(v.id, protocol.KindAck), protocol.Ack{Time: time.Now().Unix()})
		if last == nil || m.Session > last.Session { // a birth
			v.sendOpen()
		}
	case protocol.KindResult:
		var m protocol.Result
		if err := protocol.Decode(kind, payload, &m); err != nil {
			v.problems = append(v.problems, err.Error())
			return
		}
		if !m.State.Final() {
			return
		}
		if was := v.final(m.Command); was == nil {
			v.events = append(v.events, event{result: &m})
		} else if was.State != m.State || code(was) != code(&m) {
			v.problems = append(v.problems, fmt.Sprintf("I3: the result of %s was %s %s and is %s %s", m.Command, was.State, code(was), m.State, code(&m)))
		}
		v.server.publish(v.server.topics.Device(v.id, protocol.KindAck), protocol.Ack{Time: time.Now().Unix(),
			Results: []protocol.ResultAck{{Command: m.Command, State: m.State, Accepted: true}}})
	case protocol.KindPresence:
		var m protocol.Presence
		if protocol.Decode(kind, payload, &m) == nil && !m.Online {
			v.gone = max(v.gone, m.Session)
		}
	default:
		return
	}
	close(v.changed)
	v.changed = make(chan struct{})
}

func code(r *protocol.Result) fleet.Code {
	if r == nil || r.Error == nil {
		return ""
	}
	return r.Error.Code
}

// lastState and final are called with the lock.
func (v *view) lastState() *protocol.State {
	for _, e := range slices.Backward(v.events) {
		if e.state != nil {
			return e.state
		}
	}
	return nil
}

func (v *view) final(command string) *protocol.Result {
	for _, e := range v.events {
		if e.result != nil && e.result.Command == command {
			return e.result
		}
	}
	return nil
}

func (v *view) sendOpen() {
	if v.id == "" {
		return // not enrolled yet
	}
	for _, c := range v.commands {
		if v.final(c.ID) != nil {
			continue
		}
		payload, err := protocol.SignCommand(c, v.server.key)
		if err != nil {
			panic(err) // our own command
		}
		v.server.publishRaw(v.server.topics.Device(v.id, protocol.KindCommand), payload)
	}
}

// mark and rewind are the server's memory at a moment.
func (v *view) mark() []event {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clip(v.events)
}

func (v *view) rewind(mark []event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.events = slices.Clip(mark)
	v.used, v.problems, v.born, v.gone = map[string]bool{}, nil, len(mark), 0
}

// restarted begins another life of the device.
func (v *view) restarted() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.born = len(v.events)
}

// quiet waits until the connection of the life that has ended is gone, so that
// nothing of it comes later.
func (v *view) quiet() {
	deadline := time.NewTimer(3 * time.Second)
	defer deadline.Stop()
	for {
		v.mu.Lock()
		last, changed, gone := v.lastState(), v.changed, v.gone
		fresh := last != nil && len(v.events) > v.born
		v.mu.Unlock()
		if !fresh || gone >= last.Session {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			return
		}
	}
}

// forget begins a new point.
func (v *view) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.commands, v.events, v.problems, v.used, v.born, v.gone = nil, nil, nil, map[string]bool{}, 0, 0
}

// order adds a command; it is sent at once and at every birth.
func (v *view) order(c protocol.Command) protocol.Command {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.seq++
	now := time.Now()
	c.ID, c.Device, c.Seq, c.IssuedAt, c.NotAfter = fleet.NewID("cmd"), v.id, v.seq, now.Unix(), now.Add(time.Hour).Unix()
	v.commands = append(v.commands, c)
	v.sendOpen()
	return c
}
