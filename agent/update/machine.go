package update

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Parts are what the machine acts through.
type Parts struct {
	Journal  Journal
	Fetcher  Fetcher
	Archives Archives
	Releases Releases
	Programs Programs
	Errands  Errands
	Trust    Trust
	Reporter Reporter
	Log      zerolog.Logger
}

// Options are what an installation may change.
type Options struct {
	Keep  int           // releases kept on disk, the current one included; at least 2
	Pause time.Duration // before a step is tried again; doubles up to 32 times that
}

// Machine executes commands one at a time. Take, Due, Acked and Report may be
// called from any goroutine; Run is the machine's own.
type Machine struct {
	parts   Parts
	options Options
	wake    signal
	renewed signal

	mu      sync.Mutex // guards all below
	ledger  *ledger
	sent    map[string]sending
	taken   map[string]time.Time    // when this process accepted commands, by the monotonic clock
	running string                  // command whose action runs now
	stop    context.CancelCauseFunc // ends that action if it is still one to cancel

	fresh string        // release whose files this process has written and checked
	pause time.Duration // before the next step
	owed  []chore       // what failed and is tried again
}

var (
	errCancelled = fleet.Errorf(fleet.CodeCancelled, "cancelled by the operator")
	errClosed    = fleet.Errorf(fleet.CodeSuperseded, "the orchestrator has closed this command")
	errNewer     = fleet.Errorf(fleet.CodeSuperseded, "a newer deployment took its place")
)

// New reads the journal. It changes nothing.
func New(parts Parts, options Options) (*Machine, error) {
	l, err := openLedger(parts.Journal)
	if err != nil {
		return nil, err
	}
	options.Keep = max(options.Keep, 2)
	return &Machine{
		parts: parts, options: options, ledger: l, sent: map[string]sending{}, taken: map[string]time.Time{},
		wake: newSignal(), renewed: newSignal(),
	}, nil
}

// Run resumes what a crash interrupted, starts the current release's program
// and executes commands until ctx ends. The program is left running: whoever
// owns Programs stops it.
func (m *Machine) Run(ctx context.Context) error {
	m.begin()
	var wait time.Duration
	for {
		if !m.idle(ctx, wait) {
			return nil
		}
		err := m.step(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errCancelled) || errors.Is(err, errClosed) || errors.Is(err, errNewer):
			wait = 0 // the next step ends it
		case err != nil: // the journal or the disk: as after a crash, the state decides
			m.parts.Log.Error().Err(err).Msg("an update step could not be recorded")
			wait = min(max(2*wait, m.options.Pause), 32*m.options.Pause)
		default:
			wait, m.pause = m.pause, 0
		}
	}
}

// idle waits until there is something to do and d has passed; false means that
// ctx ended.
func (m *Machine) idle(ctx context.Context, d time.Duration) bool {
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
	wait:
		for {
			select {
			case <-ctx.Done():
				return false
			case <-timer.C:
				break wait
			case <-m.wake:
				if m.cancelled() {
					break wait
				}
			}
		}
	}
	for !m.busy() {
		again, stop := m.later()
		select {
		case <-ctx.Done():
		case <-m.wake:
		case <-again:
			owed := m.owed
			m.owed = nil
			for _, c := range owed {
				m.chore(c.name, c.do)
			}
		}
		stop()
		if ctx.Err() != nil {
			return false
		}
	}
	return ctx.Err() == nil
}

func (m *Machine) busy() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ledger.book.Op != nil || len(m.ledger.book.Queue) > 0
}

func (m *Machine) cancelled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ledger.book.Op != nil && givenUp(&m.ledger.book, *m.ledger.book.Op) != nil
}

// begin tidies up and starts what should run. A command in a state beyond
// APPLYING starts the right program itself.
func (m *Machine) begin() {
	m.mu.Lock()
	op := m.ledger.book.Op
	m.mu.Unlock()
	if op == nil || op.State.row().cancel {
		m.chore("starting the current release", m.startCurrent)
	}
	m.chore(tidying, m.tidy)
}

// startCurrent starts the program of the release that current names.
func (m *Machine) startCurrent() error {
	if err := m.mend(); err != nil {
		return err
	}
	id, err := m.parts.Releases.Current()
	if err != nil || id == "" {
		return err
	}
	manifest, err := m.parts.Releases.Manifest(id)
	if err != nil {
		return err
	}
	m.mu.Lock()
	active := m.ledger.book.Active
	m.mu.Unlock()
	return m.parts.Programs.Start(Release{ID: id, Manifest: manifest, Deployment: active.Deployment, Previous: active.Previous})
}

// step takes one action for the record at hand, or for the next in the queue.
func (m *Machine) step(ctx context.Context) error {
	m.mu.Lock()
	if m.ledger.book.Op == nil {
		if len(m.ledger.book.Queue) == 0 {
			m.mu.Unlock()
			return nil
		}
		if err := m.ledger.change(func(b *Book) error {
			op := b.Queue[0]
			b.Op, b.Queue = &op, b.Queue[1:]
			return nil
		}); err != nil {
			m.mu.Unlock()
			return err
		}
	}
	r := *m.ledger.book.Op
	why := givenUp(&m.ledger.book, r)
	ctx, cancel := context.WithCancelCause(ctx)
	m.running, m.stop = r.Command.ID, nil
	if r.State.row().cancel {
		m.stop = cancel
	}
	m.mu.Unlock()
	defer cancel(nil)

	if why != nil {
		return m.finish(r, Failed, why)
	}
	action := Next(r)
	m.parts.Log.Debug().Str("command", r.Command.ID).Str("state", string(r.State)).Str("action", string(action)).Msg("update step")
	switch action {
	case Fetch:
		return m.fetch(ctx, r)
	case Unpack:
		return m.unpack(ctx, r)
	case Apply:
		return m.apply(ctx, r)
	case Check:
		return m.check(ctx, r)
	case Return:
		return m.goBack(ctx, r)
	case GiveUp:
		return m.giveUp(r)
	case Abandon:
		return m.finish(r, Failed, fleet.Errorf(fleet.CodeInternal, "given up in state %s after %d steps", r.State, r.Steps))
	}
	return fmt.Errorf("command %s is in state %s, which this agent does not know", r.Command.ID, r.State)
}

// givenUp says why a record that has not changed the device yet should end.
func givenUp(b *Book, r Record) error {
	if !r.State.row().cancel {
		return nil
	}
	for _, id := range b.Cancelled {
		if id == r.Command.ID {
			return errCancelled
		}
	}
	if r.Command.Seq <= b.ClosedThrough {
		return errClosed
	}
	if len(b.Queue) > 0 {
		return errNewer // the queue holds nothing that is older
	}
	return nil
}

// move persists a transition. A cancel that came first wins over every state
// from which it is still possible.
func (m *Machine) move(r *Record, to State, change func(*Record)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := *r
	if !r.State.CanBecome(to) {
		return fmt.Errorf("no transition from %s to %s", r.State, to)
	}
	err := m.ledger.change(func(b *Book) error {
		if why := givenUp(b, *r); why != nil {
			return why
		}
		next.Command = b.Op.Command // its URL may have been renewed
		next.State, next.Steps = to, r.Steps+1
		if change != nil {
			change(&next)
		}
		b.Op = &next
		return nil
	})
	if err != nil {
		return err
	}
	told := r.State.row().report
	*r = next
	if !to.row().cancel {
		m.stop = nil
	}
	if to.row().report != told {
		m.parts.Reporter.Progress(m.progress(next))
	}
	return nil
}

// progress is the result message for an unfinished record.
func (m *Machine) progress(r Record) protocol.Result {
	return protocol.Result{Command: r.Command.ID, Attempt: max(r.Deploys, 1), State: r.State.row().report, Step: string(r.State), Error: r.Cause}
}

// admit checks a bundle against the command, the device and the floors.
func (m *Machine) admit(r Record, info *bundle.Info) error {
	ref := r.Command.Deploy.Bundle
	mf := info.Manifest
	if info.Release != ref.Release || mf.Name != ref.Name || mf.Version != ref.Version {
		return fleet.Errorf(fleet.CodeChecksum, "the archive holds %s %s (release %s), the command names %s %s (release %s)", mf.Name, mf.Version, info.Release, ref.Name, ref.Version, ref.Release)
	}
	if err := m.parts.Trust.Admit(info); err != nil {
		if ref.Signature == "" || fleet.ErrorCode(err) != fleet.CodeBadSignature {
			return err
		}
		signed := *info // later than the archive was made, or by another key
		signed.Signature = []byte(ref.Signature)
		if err := m.parts.Trust.Admit(&signed); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	book := &m.ledger.book
	var counter int64
	if book.Active.Name == mf.Name {
		counter = book.Active.Counter
	}
	now, trusted := m.parts.Reporter.Now()
	if !trusted || now.Unix() < book.IssuedAt {
		now = time.Unix(book.IssuedAt, 0)
	}
	return mf.Installable(now, counter, book.Floors[mf.Name], r.Command.Type == protocol.CommandRollback)
}

// signal wakes one waiter; signals that nobody has taken are one.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) signal() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// Summary is what a state report says of the machine.
type Summary struct {
	Active      Active
	LastCommand string // accepted or ended last
	LastState   fleet.TargetState
	HighestSeq  int64
	IssuedAt    int64  // Unix seconds of the latest verified command: the time has passed that
	Broken      string // why the device is inconsistent; "" is sound
}

// Report returns what a state report says. The state of a running command is
// accepted until its end: its progress has messages of its own.
func (m *Machine) Report() Summary {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := &m.ledger.book
	s := Summary{Active: b.Active, HighestSeq: b.HighestSeq, IssuedAt: b.IssuedAt, Broken: b.Broken}
	switch {
	case b.Op != nil:
		s.LastCommand, s.LastState = b.Op.Command.ID, fleet.TargetAccepted
	case len(b.Done) > 0:
		last := b.Done[len(b.Done)-1].Result
		s.LastCommand, s.LastState = last.Command, last.State
	}
	return s
}
