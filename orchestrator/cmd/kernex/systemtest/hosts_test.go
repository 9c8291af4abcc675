package systemtest

import "testing"

// TestThreeProgramsOnHostsOfTheirOwn takes the README's tour with every part on
// a host with an address of its own: Postgres and broker over TLS, the CLI at
// one orchestrator and then at the other.
func TestThreeProgramsOnHostsOfTheirOwn(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	l := newLab(t)
	w := l.listen()
	agents := l.agents(2)
	o := &tourOf{t: t, ways: []*system{l.at(0), l.at(1)}, agents: agents, c: l.client}
	o.run()
	w.check()
}
