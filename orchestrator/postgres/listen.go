package postgres

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/lib/pq"
	"github.com/rs/zerolog"
)

// PollInterval is how often every loop is woken without a notification: the
// bound on what a lost one costs.
const PollInterval = 5 * time.Second

// Listener tells the loops of this process what other transactions, here or in
// another replica, have left for them to do. Without a connection, and behind a
// pooler that has no LISTEN, it wakes them every PollInterval.
type Listener struct {
	dsn  string
	poll time.Duration
	log  zerolog.Logger

	mu    sync.Mutex
	wakes map[string][]chan struct{}
	kicks []func(deviceID string)
}

// NewListener makes a listener; dsn must lead to Postgres itself, "" means that
// there is no such way and polls only. Nothing happens before Run.
func NewListener(dsn string, log zerolog.Logger) *Listener {
	return &Listener{dsn: dsn, poll: PollInterval, log: log, wakes: map[string][]chan struct{}{}}
}

// Wake returns a channel that gets a value when there may be work of that kind
// (WorkRollout, WorkDispatch, WorkEvents). Wake-ups that come together are one.
func (l *Listener) Wake(work string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := make(chan struct{}, 1)
	l.wakes[work] = append(l.wakes[work], c)
	return c
}

// OnKick calls f, which must not block, with the id of a device or token whose
// connections must end, and with "" when some notifications may have been lost.
func (l *Listener) OnKick(f func(id string)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kicks = append(l.kicks, f)
}

// Run listens until ctx ends.
func (l *Listener) Run(ctx context.Context) error {
	tick := time.NewTicker(l.poll)
	defer tick.Stop()
	var notes <-chan *pq.Notification
	if l.dsn != "" {
		p := pq.NewDialListener(newDialer(), l.dsn, 100*time.Millisecond, l.poll, l.event)
		listening := make(chan error, 1)
		go func() { listening <- p.Listen(Channel) }() // waits for the first connection
		defer func() { <-listening }()                 // after Close, which ends it
		defer func() { _ = p.Close() }()               // only says that it is closed already
		notes = p.Notify
	}
	l.all()
	for {
		select {
		case <-ctx.Done():
			return nil
		case n := <-notes:
			if n == nil { // connected again
				l.all()
				l.kick("")
				continue
			}
			l.dispatch(n.Extra)
		case <-tick.C:
			l.all()
		}
	}
}

// event reports what becomes of the connection.
func (l *Listener) event(e pq.ListenerEventType, err error) {
	switch e {
	case pq.ListenerEventDisconnected, pq.ListenerEventConnectionAttemptFailed:
		l.log.Warn().Err(err).Msg("no notifications from Postgres; polling")
	case pq.ListenerEventReconnected:
		l.log.Info().Msg("notifications from Postgres are back")
	case pq.ListenerEventConnected:
	}
}

func (l *Listener) dispatch(work string) {
	if id, ok := strings.CutPrefix(work, WorkKick); ok {
		l.kick(id)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.wakes[work] {
		wake(c)
	}
}

func (l *Listener) all() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, list := range l.wakes {
		for _, c := range list {
			wake(c)
		}
	}
}

func (l *Listener) kick(id string) {
	l.mu.Lock()
	kicks := l.kicks
	l.mu.Unlock()
	for _, f := range kicks {
		f(id)
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
