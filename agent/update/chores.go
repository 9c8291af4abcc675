package update

import (
	"slices"
	"time"
)

// chore is work that no record asks for: without it the device still is on one
// whole release, with its program not running or its disk not tidy.
type chore struct {
	name string
	do   func() error
}

// later says when what failed is tried again.
func (m *Machine) later() (<-chan time.Time, func()) {
	if len(m.owed) == 0 {
		return nil, func() {}
	}
	timer := time.NewTimer(m.options.Pause)
	return timer.C, func() { timer.Stop() }
}

// chore does something now, and again until it has worked.
func (m *Machine) chore(name string, do func() error) {
	if err := do(); err != nil {
		m.parts.Log.Warn().Err(err).Msg(name + " failed and will be tried again")
		m.owed = append(m.owed, chore{name, do})
	}
}

// tidying is the name of tidy as a chore.
const tidying = "removing what is not needed"

// tidy removes the releases and archives that nothing needs any more.
func (m *Machine) tidy() error {
	m.mu.Lock()
	book := m.ledger.book
	m.mu.Unlock()
	releases := slices.Clone(book.Kept[:min(len(book.Kept), m.options.Keep)])
	releases = append(releases, book.Active.Release)
	var archives []string
	open := pointers(book.Queue)
	if book.Op != nil {
		open = append(open, book.Op)
	}
	for _, r := range open {
		releases = append(releases, r.Command.Deploy.Bundle.Release, r.Previous)
		archives = append(archives, r.Command.Deploy.Bundle.Checksum)
	}
	return m.parts.Releases.Tidy(releases, archives)
}
