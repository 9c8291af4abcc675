package update

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Take handles a command whose signature was verified: it is journaled before
// anyone is told that it was accepted. A repeat is answered from the ledger. The
// error is for the log; the orchestrator has been told what it may know.
func (m *Machine) Take(c protocol.Command) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	book := &m.ledger.book
	if r, ok := book.result(c.ID); ok {
		m.parts.Reporter.Progress(r)
		return m.note(c)
	}
	if op := m.open(c.ID); op != nil {
		return m.again(op, c)
	}
	now, trusted := m.parts.Reporter.Now()
	floor := book.IssuedAt
	switch {
	case c.Seq <= book.ClosedThrough:
		return m.stale(c)
	case c.NotAfter != 0 && (trusted && now.Unix() > c.NotAfter || floor > c.NotAfter):
		return m.refuse(c, fleet.Errorf(fleet.CodeExpired, "the command was valid until %d, it is %d", c.NotAfter, max(now.Unix(), floor)))
	case slices.Contains(book.Cancelled, c.ID):
		return m.settle(c, fleet.TargetCancelled, fleet.Errorf(fleet.CodeCancelled, "cancelled before it arrived"))
	}
	switch c.Type {
	case protocol.CommandDeploy, protocol.CommandRollback:
		return m.enqueue(c, now.UnixMilli())
	case protocol.CommandConfigure:
		if err := m.parts.Reporter.Configure(c.Configure.Config); err != nil {
			return m.refuse(c, err)
		}
		return m.settle(c, fleet.TargetSucceeded, nil)
	case protocol.CommandCancel:
		return m.cancel(c)
	case protocol.CommandRestart, protocol.CommandLogs, protocol.CommandTrust:
		// Done before it is recorded: a crash in between does it twice, which
		// harms less than never.
		if err := m.parts.Errands.Do(c); err != nil {
			return m.refuse(c, err)
		}
		return m.settle(c, fleet.TargetSucceeded, nil)
	}
	return m.refuse(c, fleet.Errorf(fleet.CodeUnsupported, "this agent does not know %s", c.Type))
}

// stale answers a command that is final for the orchestrator. It is told once
// and not journaled: what is closed needs no result, and old commands that
// somebody replays must not fill the ledger.
func (m *Machine) stale(c protocol.Command) error {
	through := m.ledger.book.ClosedThrough
	m.parts.Reporter.Progress(protocol.Result{Command: c.ID, Attempt: 1, State: fleet.TargetRejected, Error: &protocol.ErrorDetail{
		Code: fleet.CodeStaleSeq, Message: fmt.Sprintf("seq %d: every command up to %d is final", c.Seq, through)}})
	return fleet.Errorf(fleet.CodeStaleSeq, "command %s: seq %d, closed through %d", c.ID, c.Seq, through)
}

// Refuse handles a command that the pinned key has signed and that this agent
// cannot execute: it ends as rejected for that reason, once.
func (m *Machine) Refuse(c protocol.Command, reason error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.ledger.book.result(c.ID); ok {
		m.parts.Reporter.Progress(r)
		return nil
	}
	if c.Seq <= m.ledger.book.ClosedThrough {
		return m.stale(c)
	}
	return m.refuse(c, reason)
}

// open returns the record of an unfinished command.
func (m *Machine) open(id string) *Record {
	book := &m.ledger.book
	if book.Op != nil && book.Op.Command.ID == id {
		return book.Op
	}
	for i := range book.Queue {
		if book.Queue[i].Command.ID == id {
			return &book.Queue[i]
		}
	}
	return nil
}

// again handles a repeat of an unfinished command: only its URL may differ.
func (m *Machine) again(op *Record, c protocol.Command) error {
	if !sameCommand(op.Command, c) {
		return fleet.Errorf(fleet.CodeInvalid, "command %s came again with another body", c.ID)
	}
	err := m.ledger.change(func(b *Book) error {
		b.seen(c)
		for _, r := range append([]*Record{b.Op}, pointers(b.Queue)...) {
			if r != nil && r.Command.ID == c.ID {
				r.Command.Deploy = c.Deploy
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.renewed.signal()
	m.parts.Reporter.Progress(m.progress(*m.open(c.ID)))
	return nil
}

func pointers(s []Record) []*Record {
	out := make([]*Record, len(s))
	for i := range s {
		out[i] = &s[i]
	}
	return out
}

// sameCommand compares what may not change when a command is sent again.
func sameCommand(a, b protocol.Command) bool {
	strip := func(c protocol.Command) protocol.Command {
		// Rewritten by each sending: what is closed by now, and the URL.
		c.ClosedThrough, c.IssuedAt, c.NotAfter = 0, 0, 0
		if c.Deploy != nil {
			d := *c.Deploy
			d.Bundle.URL, d.Bundle.URLExpiresAt, d.Bundle.ETag = "", 0, ""
			d.Bundle.Expanded, d.Bundle.Files = 0, 0 // told or not, by what sends it
			d.Bundle.Signature = ""                  // a key change brings another
			c.Deploy = &d
		}
		return c
	}
	return reflect.DeepEqual(strip(a), strip(b))
}

// note keeps what every verified command raises.
func (m *Machine) note(c protocol.Command) error {
	return m.ledger.change(func(b *Book) error { b.seen(c); return nil })
}

func (m *Machine) refuse(c protocol.Command, reason error) error {
	if err := m.settle(c, fleet.TargetRejected, reason); err != nil {
		return err
	}
	return fmt.Errorf("refuse command %s: %w", c.ID, reason)
}

// settle ends a command that needs no machine.
func (m *Machine) settle(c protocol.Command, state fleet.TargetState, reason error) error {
	r := protocol.Result{Command: c.ID, Attempt: 1, State: state}
	if reason != nil {
		r.Error = detail(reason)
	}
	if err := m.ledger.change(func(b *Book) error { b.seen(c); b.end(c.Seq, r); return nil }); err != nil {
		return err
	}
	m.parts.Reporter.Changed()
	return nil
}

// enqueue accepts a deployment. It takes the place of every older one that has
// not begun to change the device; one that comes after a newer one is too late.
func (m *Machine) enqueue(c protocol.Command, now int64) error {
	book := &m.ledger.book
	if book.Broken != "" && c.Type != protocol.CommandRollback {
		return m.refuse(c, fleet.Errorf(fleet.CodeInconsistent, "the device is inconsistent (%s); only an operator's rollback is accepted", book.Broken))
	}
	for _, r := range append([]*Record{book.Op}, pointers(book.Queue)...) {
		if r != nil && r.Command.Seq > c.Seq {
			return m.settle(c, fleet.TargetCancelled, errNewer)
		}
	}
	r := Record{Command: c, State: Accepted, Begun: now}
	err := m.ledger.change(func(b *Book) error {
		b.seen(c)
		for _, old := range b.Queue {
			b.end(old.Command.Seq, protocol.Result{Command: old.Command.ID, Attempt: 1, State: fleet.TargetCancelled, Error: detail(errNewer)})
		}
		b.Queue = []Record{r}
		return nil
	})
	if err != nil {
		return err
	}
	maps.DeleteFunc(m.taken, func(id string, _ time.Time) bool { return m.open(id) == nil })
	m.taken[c.ID] = time.Now()
	if m.stop != nil {
		m.stop(errNewer)
	}
	m.parts.Reporter.Progress(m.progress(r))
	m.parts.Reporter.Changed()
	m.wake.signal()
	return nil
}

var errTooLate = errors.New("too late")

// cancel ends a command that waits or has not changed the device yet. One that
// has not arrived is refused when it does.
func (m *Machine) cancel(c protocol.Command) error {
	id := c.Cancel.Command
	reply := protocol.Result{Command: c.ID, Attempt: 1, State: fleet.TargetSucceeded}
	err := m.ledger.change(func(b *Book) error {
		b.seen(c)
		if r, ok := b.result(id); ok && r.State != fleet.TargetCancelled {
			return errTooLate
		}
		if b.Op != nil && b.Op.Command.ID == id && !b.Op.State.row().cancel {
			return errTooLate
		}
		b.Cancelled = append(b.Cancelled, id)
		b.Queue = slices.DeleteFunc(b.Queue, func(r Record) bool {
			if r.Command.ID != id {
				return false
			}
			b.end(r.Command.Seq, protocol.Result{Command: id, Attempt: 1, State: fleet.TargetCancelled, Error: detail(errCancelled)})
			return true
		})
		b.end(c.Seq, reply)
		return nil
	})
	if errors.Is(err, errTooLate) {
		return m.refuse(c, fleet.Errorf(fleet.CodeConflict, "command %s is past the point where it can be cancelled", id))
	}
	if err != nil {
		return err
	}
	if m.stop != nil && m.running == id {
		m.stop(errCancelled)
	}
	m.parts.Reporter.Changed()
	m.wake.signal()
	return nil
}
