package agent

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Waits for the ack of a state report. The orchestrator answers each one; three
// silences mean that the connection carries messages one way only.
const (
	ackWait    = 10 * time.Second // doubles with each repeat
	ackRepeats = 3
)

// publishWait bounds one publish; the link notices a dead connection itself.
const publishWait = 15 * time.Second

// reports is everything that the device says while it is connected: heartbeats,
// state reports, progress and results. One goroutine sends, so that the order
// is the order of events. It implements update.Reporter.
type reports struct {
	*Agent
	contact
	signal  chan struct{}
	out     chan outgoing
	dropped atomic.Int64

	mu         sync.Mutex
	session    int64 // 0: not connected
	restricted bool
	birth      bool // the session's state report is still to be sent
	asked      bool // an ack asked for state
	unacked    int  // state reports since the last ack
}

// outgoing is one best-effort message.
type outgoing struct {
	kind    protocol.Kind
	message any
}

func newReports(a *Agent) *reports {
	return &reports{Agent: a, signal: make(chan struct{}, 1), out: make(chan outgoing, 32)}
}

func (r *reports) wake() {
	select {
	case r.signal <- struct{}{}:
	default:
	}
}

func (r *reports) up(session int64, restricted bool) {
	r.machine.Resend()
	r.mu.Lock()
	r.session, r.restricted, r.birth, r.unacked = session, restricted, true, 0
	r.mu.Unlock()
	r.wake()
}

func (r *reports) down() {
	r.mu.Lock()
	r.session = 0
	r.mu.Unlock()
	r.wake()
}

func (r *reports) acked(ack protocol.Ack) {
	r.mu.Lock()
	r.unacked = 0
	for _, w := range ack.Want {
		r.asked = r.asked || w == protocol.WantState
	}
	r.mu.Unlock()
	r.wake()
}

// Progress implements update.Reporter.
func (r *reports) Progress(p protocol.Result) { r.queue(outgoing{protocol.KindResult, p}) }

// Request implements update.Reporter.
func (r *reports) Request(q protocol.Request) { r.queue(outgoing{protocol.KindRequest, q}) }

// Changed implements update.Reporter.
func (r *reports) Changed() { r.wake() }

func (r *reports) queue(o outgoing) {
	select {
	case r.out <- o:
	default:
		r.log.Debug().Int64("dropped", r.dropped.Add(1)).Msg("a progress report was dropped")
	}
}

// Now implements update.Reporter. A clock that is before this program's build is
// not trusted. That the broker's time differs is no reason: nobody has signed
// it, and whoever could make the device doubt its clock could bring it commands
// that have expired.
func (r *reports) Now() (time.Time, bool) {
	now := r.cfg.Clock()
	return now, !now.Before(buildTime)
}

// Configure implements update.Reporter: a new configuration is in force when it
// returns nil, and after any restart.
func (r *reports) Configure(c fleet.Config) error {
	r.trial.begin()
	err := r.cache.change(func(e *enrolled) error {
		if c.Version < e.Config.Version {
			return fleet.Errorf(fleet.CodeSuperseded, "configuration version %d is older than %d, which is in force", c.Version, e.Config.Version)
		}
		if e.Before == nil {
			before := e.Config
			e.Before = &before
		}
		e.Config, e.Reported, e.Outcome, e.Error = c, c.Version, applied, ""
		return nil
	})
	if err != nil {
		return err
	}
	r.trial.note(func() {}) // now there is something to decide
	if err := r.adopt(c); err != nil {
		return err
	}
	r.log.Info().Int64("version", c.Version).Msg("configuration applied")
	r.wake()
	return nil
}

// reject notes why a configuration is not in force.
func (r *reports) reject(version int64, reason error) error {
	return r.cache.change(func(e *enrolled) error {
		if version > e.Config.Version {
			e.Reported, e.Outcome, e.Error = version, rejected, fleet.ErrorMessage(reason)
		}
		return nil
	})
}

// run sends until ctx ends.
func (r *reports) run(ctx context.Context) {
	v := newVitals(r.Agent)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.signal:
		case <-timer.C:
		case o := <-r.out:
			r.send(ctx, o.kind, 1, o.message)
		}
		timer.Reset(r.round(ctx, v))
	}
}

// round sends what is due and returns how long nothing more will be.
func (r *reports) round(ctx context.Context, v *vitals) time.Duration {
	r.mu.Lock()
	session, restricted, birth, asked := r.session, r.restricted, r.birth, r.asked
	r.birth, r.asked = false, false
	r.mu.Unlock()
	if session == 0 {
		return time.Hour // up wakes it
	}
	if birth {
		v.begin(session)
	}
	now := time.Now()
	wait := time.Hour
	if !restricted {
		wait = r.state(ctx, v, now, birth || asked)
		for len(r.out) > 0 { // progress goes before the result that ends it
			o := <-r.out
			r.send(ctx, o.kind, 1, o.message)
		}
		due, next := r.machine.Due(now)
		for _, result := range due {
			r.send(ctx, protocol.KindResult, 1, result)
		}
		wait = min(wait, next)
		ask, next := r.cert.due(now)
		if ask {
			r.send(ctx, protocol.KindRequest, 1, protocol.Request{Want: protocol.WantCertificate})
		}
		wait = min(wait, next)
	}
	if h, next := v.heartbeat(now); h != nil {
		r.send(ctx, protocol.KindHeartbeat, 0, h)
		wait = min(wait, next)
	} else {
		wait = min(wait, next)
	}
	return max(wait, time.Millisecond)
}

// state sends the state report if it is due: asked for, changed, or not
// acknowledged.
func (r *reports) state(ctx context.Context, v *vitals, now time.Time, asked bool) time.Duration {
	r.mu.Lock()
	unacked := r.unacked
	r.mu.Unlock()
	resend := v.sent.Add(ackWait << max(unacked-1, 0))
	late := unacked > 0 && !now.Before(resend)
	if late && unacked > ackRepeats {
		r.mu.Lock()
		r.unacked = 0
		r.mu.Unlock()
		r.link.Load().Redial("the orchestrator acknowledges nothing")
		return time.Hour
	}
	if changed := v.changed(); !asked && !changed && !late {
		if unacked > 0 {
			return time.Until(resend)
		}
		return time.Hour
	}
	v.sent = now
	r.mu.Lock()
	r.unacked++
	unacked = r.unacked
	r.mu.Unlock()
	r.send(ctx, protocol.KindState, 1, v.state)
	return ackWait << max(unacked-1, 0)
}

// send publishes; what does not arrive is sent again by its own rule.
func (r *reports) send(ctx context.Context, kind protocol.Kind, qos byte, message any) {
	payload, err := json.Marshal(message)
	if err != nil {
		r.log.Error().Err(err).Str("kind", string(kind)).Msg("a message could not be encoded")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	begun := time.Now()
	err = r.link.Load().Publish(ctx, kind, payload, qos)
	if err == nil && qos > 0 {
		r.answered(begun)
	}
	if err != nil && ctx.Err() == nil {
		r.log.Debug().Err(err).Str("kind", string(kind)).Msg("a message was not sent")
	}
}
