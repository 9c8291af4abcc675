package systemtest

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// moved bounds how long the work of a dead replica may stand still.
const moved = 10 * time.Second

// TestAKilledOrchestratorsWorkMoves kills one of two orchestrators in the middle
// of deployments to eight devices: when results flow, when commands go out, and,
// in the long form, by a pulled cable, which nobody is told of.
func TestAKilledOrchestratorsWorkMoves(t *testing.T) {
	t.Parallel()
	if !inOwnNetwork(t) {
		return
	}
	l := newLab(t)
	first, second := l.orch[0], l.orch[1]
	s := l.at(1)
	agents := l.agents(8)
	var all []fleet.Deployment

	gateBundle(t, s, "1.0.0", 64)
	d := deployGate(t, s, "1.0.0", agents...)
	all = append(all, d)
	reaches(t, s, d, agents, fleet.TargetInstalling)
	for _, r := range l.orch {
		if n := r.metric("kernex_transport_received_total"); n < 4 {
			t.Errorf("%s received %v messages of 8 devices: the work is not shared", r.host.name, n)
		}
	}
	begin := time.Now()
	open("1.0.0", agents...)
	first.kill()
	l.within(s, d, begin, "killed among results")
	first.start()
	l.ready()

	gateBundle(t, s, "2.0.0", 64)
	open("2.0.0", agents...)
	begin = time.Now()
	d = deployGate(t, l.at(0), "2.0.0", agents...)
	all = append(all, d)
	first.kill()
	l.within(s, d, begin, "killed among commands")
	first.start()
	l.ready()

	if long() {
		gateBundle(t, s, "3.0.0", 64)
		d = deployGate(t, s, "3.0.0", agents...)
		all = append(all, d)
		reaches(t, s, d, agents, fleet.TargetInstalling)
		begin = time.Now()
		first.host.unplug()
		open("3.0.0", agents...)
		// The broker notices after 7.5 s; what it handed to the dead in that time the
		// devices send again, after 8 s and then 16 s.
		l.end(s, d, begin, "unplugged among results")
		first.host.plug()
		l.ready()
	}

	for _, d := range all {
		ends(t, s, d, fleet.DeploymentSuccess, agents)
	}
	if n := l.db.number(l.dbName, `SELECT count(*) FROM (SELECT 1 FROM device_bundle_history GROUP BY deployment_id, device_id HAVING count(*) > 1) twice`); n != 0 {
		t.Errorf("%d targets have two terminal results", n)
	}
	if n := l.db.number(l.dbName, `SELECT count(*) FROM device_bundle_history WHERE late`); n != 0 {
		t.Errorf("%d results came after their target had ended", n)
	}
	if code := second.metric("kernex_transport_connections"); code != 8 {
		t.Errorf("the survivor has %v connections", code)
	}
}

// within is end with the bound for a killed replica.
func (l *lab) within(s *system, d fleet.Deployment, begin time.Time, what string) {
	l.t.Helper()
	if took := l.end(s, d, begin, what); took > moved {
		l.t.Errorf("%s: the deployment ended %v after it, want at most %v", what, took.Round(time.Millisecond), moved)
	}
}

// end waits for the success of a deployment and returns how long after begin
// that was.
func (l *lab) end(s *system, d fleet.Deployment, begin time.Time, what string) time.Duration {
	l.t.Helper()
	testkit.Eventually(l.t, patience, func() error {
		got, err := s.api.Deployment(context.Background(), d.ID)
		if err == nil && got.Status != fleet.DeploymentSuccess {
			err = fmt.Errorf("deployment is %s, %v", got.Status, got.Progress)
		}
		return err
	})
	took := time.Since(begin)
	l.t.Logf("%s: the deployment ended %v after it", what, took.Round(time.Millisecond))
	return took
}

// metric reads one number of /metrics.
func (r *replica) metric(name string) float64 {
	r.t.Helper()
	resp, err := http.Get(r.url() + "/metrics")
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(strings.TrimSpace(line), name+" "); ok {
			v, err := strconv.ParseFloat(rest, 64)
			if err != nil {
				r.t.Fatal(err)
			}
			return v
		}
	}
	return 0
}
