package broker

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// session is one authenticated connection.
type session struct {
	cl    *mqtt.Client
	conn  *conn
	grant Grant
	id    string // the client id inside the broker

	established atomic.Bool // CONNACK went out
	subscribing atomic.Bool // a SUBSCRIBE is being handled
	willSent    atomic.Bool
	willTopic   string // "" without a will
	willPayload []byte
	timer       *time.Timer   // ends the session at its limit; nil: no limit
	done        chan struct{} // closed when mochi has let go of the client
}

// sessions holds the authenticated connections by client id.
type sessions struct {
	mu sync.Mutex
	by map[string]*session
}

// add puts s in, or returns the session that holds its id.
func (t *sessions) add(s *session) (holder *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.by[s.id]; old != nil {
		return old
	}
	t.by[s.id] = s
	return nil
}

func (t *sessions) remove(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.by[s.id] == s {
		delete(t.by, s.id)
	}
}

func (t *sessions) get(id string) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.by[id]
}

func (t *sessions) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.by)
}

func (t *sessions) all() []*session {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*session, 0, len(t.by))
	for _, s := range t.by {
		out = append(out, s)
	}
	return out
}

// newSession prepares the session of a client whose login was granted.
func newSession(cl *mqtt.Client, c *conn, g Grant, clientID string) *session {
	s := &session{cl: cl, conn: c, grant: g, id: sessionID(g, clientID), done: make(chan struct{})}
	if will := &cl.Properties.Will; will.Flag != 0 {
		if g.Restricted {
			*will = mqtt.Will{} // it may not publish presence, so its will may not either
		} else {
			// Copies: the originals share the CONNECT packet's memory, password included.
			s.willTopic, s.willPayload = strings.Clone(will.TopicName), bytes.Clone(will.Payload)
			will.TopicName, will.Payload = s.willTopic, s.willPayload
		}
	}
	return s
}

// sessionOf returns the session of a client, or nil for the inline client and
// before its login.
func sessionOf(cl *mqtt.Client) *session {
	if c, ok := cl.Net.Conn.(*conn); ok {
		return c.session.Load()
	}
	return nil
}

// enter makes s the one session of its id. A holder is closed first, and enter
// waits until mochi has let go of it: otherwise the old connection's clean-up
// now and then deletes the new client, which then stays connected and gets
// nothing. It also puts the old session's will before the new one's birth.
func (b *Broker) enter(s *session) bool {
	timer := time.NewTimer(b.cfg.WriteTimeout + time.Second)
	defer timer.Stop()
	for {
		old := b.sessions.add(s)
		if old == nil {
			return true
		}
		old.cl.Stop(packets.ErrSessionTakenOver)
		select {
		case <-old.done:
		case <-timer.C:
			return false
		case <-b.stopping:
			return false
		}
	}
}

// ended cleans up after a connection.
func (b *Broker) ended(c *conn, err error) {
	s := c.session.Load()
	b.countEnd(s, err)
	if s == nil {
		return
	}
	defer close(s.done)
	defer b.sessions.remove(s)
	if s.timer != nil {
		s.timer.Stop()
	}
	if cl, ok := b.server.Clients.Get(s.id); ok && cl == s.cl {
		// After a panic, or an error between login and CONNACK, mochi leaves the
		// client in its tables.
		b.server.UnsubscribeClient(cl)
		cl.ClearInflights()
		b.server.Clients.Delete(s.id)
	}
	// Mochi forgets the will when the connection is stopped between two packets.
	if s.established.Load() && !s.willSent.Load() && !errors.Is(s.cl.StopCause(), packets.CodeDisconnect) {
		b.deliverWill(s)
	}
}

// deliverWill hands a will on as what it is: the device's last message. None
// is sent when the broker itself stops: the devices are well, and they return.
func (b *Broker) deliverWill(s *session) {
	if s.willTopic == "" || b.isStopping() || !s.willSent.CompareAndSwap(false, true) {
		return
	}
	if b.ingest != nil {
		b.ingest.Receive(s.willTopic, s.willPayload)
		return
	}
	if err := b.server.Publish(s.willTopic, s.willPayload, false, 1); err != nil {
		b.log.Warn().Err(err).Str("topic", s.willTopic).Msg("will not delivered")
	}
}
