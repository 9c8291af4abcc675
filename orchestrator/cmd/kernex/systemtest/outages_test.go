package systemtest

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// outage takes one part away and brings it back, and says what an operator is
// to read meanwhile.
type outage struct {
	name string
	away func(*lab)
	back func(*lab)
	// The check of /readyz that fails, and a pattern of its reason; "" means that
	// the program is ready, or away itself.
	orchestrator, reason string
	broker, brokerReason string
	log                  string // in a line of each orchestrator's log
}

var outages = []outage{
	{
		name: "broker killed", away: func(l *lab) { l.broker.kill() }, back: func(l *lab) { l.broker.start() },
		orchestrator: "broker", reason: "no connection to the broker", log: "connection to the broker failed",
	},
	{
		name: "Postgres killed", away: func(l *lab) { l.db.kill() }, back: func(l *lab) { l.db.start() },
		orchestrator: "postgres", reason: "the database does not answer", broker: "authorizer", brokerReason: "the database does not answer", log: "the database does not answer",
	},
	{
		name: "object store killed", away: func(l *lab) { l.objects.kill() }, back: func(l *lab) { l.objects.start() },
		orchestrator: "object store", reason: "the object store does not answer", log: "object store",
	},
	{
		name: "broker unplugged", away: func(l *lab) { l.broker.host.unplug() }, back: func(l *lab) { l.broker.host.plug() },
		orchestrator: "broker", reason: "no connection to the broker", log: "connection to the broker failed",
	},
	{
		name: "Postgres unplugged", away: func(l *lab) { l.db.host.unplug() }, back: func(l *lab) { l.db.host.plug() },
		orchestrator: "postgres", reason: "the database does not answer|no answer within 5s", broker: "authorizer", brokerReason: "no orchestrator answers|the database does not answer", log: "the database does not answer",
	},
	{
		name: "object store unplugged", away: func(l *lab) { l.objects.host.unplug() }, back: func(l *lab) { l.objects.host.plug() },
		orchestrator: "object store", reason: "the object store does not answer|no answer within 5s", log: "object store",
	},
}

// TestAnOutageInADeploymentCostsTimeOnly takes the broker, Postgres and the
// object store away in the middle of a deployment, one after the other: for 8 s
// by a kill, in the long form for a minute, and also by a pulled cable.
func TestAnOutageInADeploymentCostsTimeOnly(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	l := newLab(t)
	// Devices on the second host fetch slowly enough to be caught at it.
	l.devices[1].slow("4mbit")
	agents := l.agents(5)
	length, kinds := 8*time.Second, outages[:3]
	if long() {
		length, kinds = time.Minute, outages
	}
	for i, o := range kinds {
		l.suffer(o, fmt.Sprintf("1.%d.0", i), length, agents)
	}
}

// suffer deploys version to four devices, two of which run their script and two
// fetch the bundle when the outage begins. The first script ends in the outage,
// the others after it; a fifth device is deployed to in the outage.
func (l *lab) suffer(o outage, version string, length time.Duration, agents []*agent) {
	t := l.t
	t.Helper()
	s := l.at(1)
	gateBundle(t, s, version, 3<<20)
	d := deployGate(t, s, version, agents[:4]...)
	reaches(t, s, d, []*agent{agents[0], agents[2]}, fleet.TargetInstalling)
	reaches(t, s, d, []*agent{agents[1], agents[3]}, fleet.TargetDownloading)

	programs := map[string]*process{"orchestrator 1": l.orch[0].process, "orchestrator 2": l.orch[1].process, "broker": l.broker.process}
	before := map[string]int{}
	for name, p := range programs {
		before[name] = len(p.output())
	}
	begin := time.Now()
	o.away(l)
	open(version, agents[0])
	var late *fleet.Deployment
	if o.orchestrator != "postgres" {
		dd := deployGate(t, s, version, agents[4])
		late = &dd
	}
	l.probe(o, begin.Add(length))
	for name, p := range programs {
		lines := troubled(p.output()[before[name]:])
		// A line every few seconds and part, not one for each attempt.
		if limit := 10 + int(length/time.Second)/2; len(lines) > limit {
			t.Errorf("%s: %s logged %d lines in %v, at most %d are bearable:\n%s", o.name, name, len(lines), length, limit, strings.Join(lines, "\n"))
		} else {
			t.Logf("%s: %s logged %d lines:\n%s", o.name, name, len(lines), strings.Join(lines, "\n"))
		}
		if strings.HasPrefix(name, "orchestrator") && !strings.Contains(strings.Join(lines, "\n"), o.log) {
			t.Errorf("%s: %s has no line with %q:\n%s", o.name, name, o.log, strings.Join(lines, "\n"))
		}
	}

	returned := time.Now()
	o.back(l)
	open(version, agents[1:]...)
	l.ready()
	ready := time.Since(returned)
	ends(t, s, d, fleet.DeploymentSuccess, agents[:4])
	t.Logf("%s for %v: ready %v after the return, the deployment ended %v after it", o.name, length, ready.Round(time.Millisecond), time.Since(returned).Round(time.Millisecond))
	if late != nil {
		ends(t, s, *late, fleet.DeploymentSuccess, agents[4:])
		t.Logf("%s: what was asked for meanwhile ended %v after the return", o.name, time.Since(returned).Round(time.Millisecond))
	}
	if n := l.db.number(l.dbName, `SELECT count(*) FROM (SELECT 1 FROM device_bundle_history GROUP BY deployment_id, device_id HAVING count(*) > 1) twice`); n != 0 {
		t.Errorf("%s: %d targets have two terminal results", o.name, n)
	}
}

// probe asks every program each second until then, as a load balancer does, and
// looks at the last answers.
func (l *lab) probe(o outage, until time.Time) {
	l.t.Helper()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	type answer struct {
		status int
		r      readiness
		err    error
		took   time.Duration
	}
	probers := map[string]prober{"orchestrator 1": l.orch[0], "orchestrator 2": l.orch[1], "broker": l.broker}
	last := map[string]answer{}
	for time.Now().Before(until) {
		for name, p := range probers {
			begin := time.Now()
			a := answer{}
			a.status, a.r, a.err = readyz(p)
			a.took = time.Since(begin)
			last[name] = a
		}
		<-tick.C
	}
	for name, a := range last {
		check, reason := o.orchestrator, o.reason
		if name == "broker" {
			if check, reason = o.broker, o.brokerReason; strings.HasPrefix(o.name, "broker") {
				continue // it is away
			}
		}
		switch {
		case a.err != nil:
			l.t.Errorf("%s: /readyz of %s after %v: %v", o.name, name, a.took, a.err)
		case check == "" && a.status != http.StatusOK:
			l.t.Errorf("%s: /readyz of %s: %d %+v, want 200", o.name, name, a.status, a.r)
		case check != "" && (a.status != http.StatusServiceUnavailable || a.r.Checks[check] != "failed" || !regexp.MustCompile(reason).MatchString(a.r.Reasons[check])):
			l.t.Errorf("%s: /readyz of %s: %d %+v, want %s to fail with %q", o.name, name, a.status, a.r, check, reason)
		}
		for c, state := range a.r.Checks {
			if c != check && state != "ok" {
				l.t.Errorf("%s: /readyz of %s: %s is %s too", o.name, name, c, state)
			}
		}
	}
}

// troubled returns the lines of warnings and errors.
func troubled(log string) (out []string) {
	for line := range strings.Lines(log) {
		if strings.Contains(line, `"level":"warn"`) || strings.Contains(line, `"level":"error"`) || !strings.HasPrefix(line, "{") {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}
