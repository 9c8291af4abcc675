package agent

import (
	"math"
	"reflect"
	"runtime"
	"time"

	"github.com/kernexhq/kernex/agent/probe"
	"github.com/kernexhq/kernex/pkg/buildinfo"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// fullEvery is how often a heartbeat says everything: heartbeats are sent once
// and may be lost, and what follows from the others, such as the uptime, costs
// more than the rest of a heartbeat.
const fullEvery = 10

// How far a metric moves before a heartbeat in between says so.
const (
	cpuStep    = 3    // percentage points
	diskStep   = 0.5  // percentage points
	memoryStep = 0.02 // of the memory in use
)

// vitals makes heartbeats and state reports. It belongs to the goroutine that
// sends them.
type vitals struct {
	*Agent
	host   *probe.Host
	limits probe.Limits
	sample probe.Sample

	state protocol.State // as last sent
	sent  time.Time      // when

	last protocol.Heartbeat // as sent, with every metric
	next time.Time          // when the next heartbeat is due
	gap  time.Duration      // the interval that next was made with
}

func newVitals(a *Agent) *vitals {
	v := &vitals{Agent: a, host: probe.NewHost(a.state.dir), limits: a.cfg.limits()}
	v.state = protocol.State{
		Boot: probe.BootID(), AgentVersion: buildinfo.Version, OS: probe.OS(), Arch: runtime.GOARCH, Hardware: probe.Hardware(),
	}
	var rev int64
	if _, err := a.journal.Read("state_rev", &rev); err == nil { // else the ack asks for state
		v.state.StateRev = rev
	}
	v.look()
	return v
}

// look takes a sample of the host.
func (v *vitals) look() {
	sample, err := v.host.Read()
	if err != nil {
		v.log.Debug().Err(err).Msg("some metrics are missing")
	}
	v.sample = sample
}

// begin starts a session: everything is told again.
func (v *vitals) begin(session int64) {
	v.state.Session = session
	v.last = protocol.Heartbeat{}
	v.next = time.Time{}
}

// status is one word for host, program and machine.
func (v *vitals) status(broken string) string {
	if broken != "" || v.programs.supervisor.Status().GaveUp {
		return probe.Failing
	}
	return v.limits.Status(v.sample)
}

// changed brings the state report up to date and reports whether it says
// something new; then its revision has risen.
func (v *vitals) changed() bool {
	next := v.state
	m := v.machine.Report()
	e := v.cache.get()
	next.Status = v.status(m.Broken)
	next.BundleName, next.BundleVersion, next.Release = m.Active.Name, m.Active.Version, m.Active.Release
	next.LastCommand, next.LastCommandState = m.LastCommand, string(m.LastState)
	next.HighestSeq = m.HighestSeq
	next.ConfigVersion, next.ConfigOutcome, next.ConfigError = e.Reported, e.Outcome, e.Error
	next.TrustMode, next.ReleaseKeys, next.CommandKey = e.trustMode(), e.releaseKeyIDs(), e.CommandKey
	if reflect.DeepEqual(next, v.state) {
		return false
	}
	next.StateRev++
	v.state = next
	if err := v.journal.Write(map[string]any{"state_rev": next.StateRev}); err != nil {
		v.log.Error().Err(err).Msg("the state revision could not be recorded")
	}
	return true
}

// heartbeat returns the heartbeat that is due, nil if none is, and how long
// until the next.
func (v *vitals) heartbeat(now time.Time) (*protocol.Heartbeat, time.Duration) {
	gap := time.Duration(v.cache.get().Config.HeartbeatIntervalS) * time.Second
	if gap != v.gap && !v.next.IsZero() {
		v.next = v.next.Add(gap - v.gap) // a new interval counts from the last heartbeat
	}
	v.gap = gap
	if now.Before(v.next) {
		return nil, v.next.Sub(now)
	}
	v.next = now.Add(gap)
	v.look()
	full := protocol.Heartbeat{
		Session: v.state.Session, Seq: v.last.Seq + 1, StateRev: v.state.StateRev, AgentVersion: buildinfo.Version,
		Status: v.status(v.machine.Report().Broken), UptimeS: v.sample.UptimeS,
		CPUPct: rounded(v.sample.CPUPct, 10), MemoryMB: rounded(v.sample.MemoryMB, 1), DiskPct: rounded(v.sample.DiskPct, 10),
	}
	h := full
	if full.Seq%fullEvery != 1 {
		h.AgentVersion, h.UptimeS = "", 0
		if h.Status == v.last.Status {
			h.Status = ""
		}
		full.CPUPct, h.CPUPct = moved(full.CPUPct, v.last.CPUPct, cpuStep)
		full.DiskPct, h.DiskPct = moved(full.DiskPct, v.last.DiskPct, diskStep)
		full.MemoryMB, h.MemoryMB = moved(full.MemoryMB, v.last.MemoryMB, memoryStep**full.MemoryMB)
	}
	v.last = full
	if full.Status != v.state.Status {
		v.reports.wake() // the state report follows
	}
	return &h, gap
}

// moved returns a metric's value as the orchestrator knows it then, and what of
// it goes into the heartbeat: nothing as long as it is near what was sent last.
func moved(now, last *float64, step float64) (known, sent *float64) {
	if last != nil && math.Abs(*now-*last) < step {
		return last, nil
	}
	return now, now
}

func rounded(v, parts float64) *float64 {
	v = math.Round(v*parts) / parts
	return &v
}
