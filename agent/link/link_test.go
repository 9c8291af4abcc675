package link_test

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/agent/link"
	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	id   = "dev1"
	name = "fleet1"
)

// server accepts tokens that are valid by a clock that is ahead of this one.
type server struct {
	key   identity.PublicKey
	ahead time.Duration

	mu     sync.Mutex
	logins int
}

func (s *server) Authorize(_ context.Context, l broker.Login) (broker.Grant, error) {
	s.mu.Lock()
	s.logins++
	s.mu.Unlock()
	if err := identity.VerifyDeviceToken(string(l.Password), s.key, l.Username, name, time.Now().Add(s.ahead)); err != nil {
		return broker.Grant{}, err
	}
	return broker.Grant{Role: broker.RoleDevice, ID: l.Username}, nil
}

// peer counts sessions and passes events on.
type peer struct {
	session int64
	up      chan int64
	down    chan struct{}
	in      chan string
}

func newPeer() *peer {
	return &peer{up: make(chan int64, 10), down: make(chan struct{}, 10), in: make(chan string, 10)}
}

func (p *peer) NextSession() (int64, error)         { p.session++; return p.session, nil }
func (p *peer) Up(session int64, _ bool)            { p.up <- session }
func (p *peer) Down()                               { p.down <- struct{}{} }
func (p *peer) Message(k protocol.Kind, msg []byte) { p.in <- string(k) + " " + string(msg) }

func get[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	timer := time.NewTimer(20 * time.Second)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// connect runs a link to a broker whose clock is ahead.
func connect(t *testing.T, ahead time.Duration) (*brokertest.Server, *brokertest.Inbox, *server, *link.Link, *peer, func()) {
	t.Helper()
	key, err := identity.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	s, inbox := &server{key: key.Public(), ahead: ahead}, &brokertest.Inbox{}
	b := brokertest.Start(t, s, inbox)
	topics := protocol.NewTopics("")
	now, err := json.Marshal(protocol.Time{Time: time.Now().Add(ahead).Unix()})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(t.Context(), topics.Time(), now, 0, true); err != nil {
		t.Fatal(err)
	}
	p := newPeer()
	l := link.New(link.Endpoint{Broker: b.URL, Topics: topics, Log: zerolog.Nop()}, link.Device{ID: id, Fleet: name, Key: key}, p)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, false) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := get(t, "the link's end", done); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return b, inbox, s, l, p, stop
}

func TestEachConnectionIsANewSessionAndTheLastSaysGoodbye(t *testing.T) {
	t.Parallel()
	b, inbox, _, l, p, stop := connect(t, 0)
	topics := protocol.NewTopics("")
	if n := get(t, "a connection", p.up); n != 1 {
		t.Errorf("session %d", n)
	}
	if err := b.Publish(t.Context(), topics.Device(id, protocol.KindCommand), []byte("x"), 1, false); err != nil {
		t.Fatal(err)
	}
	if m := get(t, "a command", p.in); m != "command x" {
		t.Errorf("got %q", m)
	}
	if err := l.Publish(t.Context(), protocol.KindState, []byte(`{"n":1}`), 1); err != nil {
		t.Fatal(err)
	}
	b.Kick(id) // as after a revocation: the will is sent
	get(t, "the end", p.down)
	if m, err := inbox.Wait(t.Context(), topics.Device(id, protocol.KindPresence)); err != nil || m.Payload != `{"online":false,"session":1}` {
		t.Errorf("will: %+v %v", m, err)
	}
	if n := get(t, "a second connection", p.up); n != 2 {
		t.Errorf("session %d", n)
	}
	l.Redial("it is a test")
	get(t, "its end", p.down)
	get(t, "a third connection", p.up)
	stop()
	get(t, "its end", p.down)
	goodbye := 0
	for _, m := range inbox.All() {
		if m.Payload == `{"online":false,"session":3}` {
			goodbye++
		}
	}
	if goodbye != 1 {
		t.Errorf("%d goodbyes of session 3: %+v", goodbye, inbox.All())
	}
	if err := l.Publish(t.Context(), protocol.KindState, nil, 1); err != link.ErrOffline { //nolint:errorlint // as it is
		t.Errorf("offline: %v", err)
	}
}

func TestADeviceWithoutAClockTakesTheServersTimeOnceAndConnects(t *testing.T) {
	t.Parallel()
	b, _, s, _, p, _ := connect(t, 48*time.Hour)
	if n := get(t, "a connection", p.up); n != 2 {
		t.Errorf("session %d", n)
	}
	b.Kick(id)
	if n := get(t, "a second connection", p.up); n != 3 {
		t.Errorf("session %d", n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.logins != 3 { // refused once, and never again
		t.Errorf("%d logins", s.logins)
	}
}

func TestAnEnrolmentThatIsRefusedForItsKeyTypeEnds(t *testing.T) {
	t.Parallel()
	key, err := identity.Generate("")
	if err != nil {
		t.Fatal(err)
	}
	topics := protocol.NewTopics("")
	var b *brokertest.Server
	answer := make(chan string, 4)
	b = brokertest.Start(t, &server{}, receive(func(topic string, _ []byte) {
		if kind, nonce, _ := topics.Parse(topic); kind == protocol.KindEnrollRequest {
			answer <- nonce
		}
	}))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for n := 0; ; n++ {
			select {
			case nonce := <-answer:
				reply := protocol.EnrollReply{Error: &protocol.ErrorDetail{Code: fleet.CodeUnavailable, Message: "not now"}}
				if n > 0 {
					reply.Error.Code = fleet.CodeUnsupported
				}
				payload, _ := json.Marshal(reply)
				_ = b.Publish(ctx, topics.EnrollReply(nonce), payload, 1, false)
			case <-ctx.Done():
				return
			}
		}
	}()
	e := link.Endpoint{Broker: b.URL, Topics: topics, Log: zerolog.Nop()}
	if _, err := e.Enroll(ctx, key, protocol.EnrollRequest{PublicKey: string(key.Public().PEM())}); fleet.ErrorCode(err) != fleet.CodeUnsupported {
		t.Errorf("got %v", err)
	}
}

type receive func(string, []byte)

func (r receive) Receive(topic string, payload []byte) { r(topic, payload) }
