package update

import (
	"slices"
	"time"

	"github.com/kernexhq/kernex/pkg/protocol"
)

// How often an unacknowledged result is sent again: first in less than the 10 s
// in which the work of a dead orchestrator has to move to another one.
const (
	firstResend = 8 * time.Second
	maxResend   = 5 * time.Minute
)

// sending is when a pending result goes out next. It is not journaled: after a
// restart all are due.
type sending struct {
	at   time.Time
	wait time.Duration
}

// Due returns the results to send now, by the clock that orders durations, and
// how long nothing else will be due. A result that is returned counts as sent.
func (m *Machine) Due(now time.Time) ([]protocol.Result, time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var due []protocol.Result
	next := maxResend
	pending := m.ledger.book.Pending
	for _, r := range pending {
		s, ok := m.sent[r.Command]
		if !ok || !now.Before(s.at) {
			if !ok {
				s.wait = firstResend
			}
			due = append(due, r)
			s.at, s.wait = now.Add(s.wait), min(2*s.wait, maxResend)
			m.sent[r.Command] = s
		}
		next = min(next, s.at.Sub(now))
	}
	for id := range m.sent {
		if !slices.ContainsFunc(pending, func(r protocol.Result) bool { return r.Command == id }) {
			delete(m.sent, id)
		}
	}
	return due, next
}

// Resend makes every pending result due: a new connection has come up.
func (m *Machine) Resend() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.sent)
}

// Acked forgets the results that the orchestrator has stored or refused.
func (m *Machine) Acked(acks []protocol.ResultAck) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	named := func(r protocol.Result) bool {
		return slices.ContainsFunc(acks, func(a protocol.ResultAck) bool { return a.Command == r.Command && a.State == r.State })
	}
	if !slices.ContainsFunc(m.ledger.book.Pending, named) {
		return nil
	}
	return m.ledger.change(func(b *Book) error {
		b.Pending = slices.DeleteFunc(b.Pending, named)
		return nil
	})
}
