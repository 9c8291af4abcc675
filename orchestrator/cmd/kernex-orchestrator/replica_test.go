package main

import (
	"context"
	"database/sql"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/mqttclient"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestTwoReplicasShareTheWorkAndAKilledOnesShareMoves(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.replica()
	b := s.replica("--postgres-direct", s.DSN) // as behind a pooler: no prepared statements
	s.serveBroker(a, b)
	a.awaitReady(http.StatusOK)
	b.awaitReady(http.StatusOK)
	testkit.Eventually(t, 30*time.Second, func() bool {
		return a.metric("kernex_transport_connections") == 8 && b.metric("kernex_transport_connections") == 8
	})

	free := make(chan struct{})
	var devices []*device
	var ids []string
	for range 40 {
		d := s.register()
		d.free = free
		d.connect()
		devices, ids = append(devices, d), append(ids, d.id)
	}
	first := s.Deploy(s.bundle("1.0.0"), ids...)
	testkit.Eventually(t, 30*time.Second, func() bool { return s.count(first, fleet.TargetAccepted) == len(ids) })
	for name, p := range map[string]*process{"a": a, "b": b} {
		if n := p.metric("kernex_transport_received_total"); n < 20 {
			t.Errorf("replica %s received %v of at least 80 messages", name, n)
		}
	}

	// Results begin to flow and one replica dies among them.
	begin := time.Now()
	close(free)
	a.kill()
	testkit.Eventually(t, 10*time.Second, func() bool {
		open := 0
		for _, d := range devices {
			open += d.open()
		}
		return open == 0
	})
	t.Logf("every result acknowledged %v after the kill", time.Since(begin).Round(time.Millisecond))
	testkit.Eventually(t, 20*time.Second, func() bool { return s.Deployment(first).Status == fleet.DeploymentSuccess })

	// The survivor does the whole of the next one.
	second := s.Deploy(s.bundle("2.0.0"), ids...)
	testkit.Eventually(t, 30*time.Second, func() bool { return s.Deployment(second).Status == fleet.DeploymentSuccess })
	for _, id := range []string{first, second} {
		if n := s.count(id, fleet.TargetSucceeded); n != len(ids) {
			t.Errorf("deployment %s: %d of %d succeeded", id, n, len(ids))
		}
	}
	if n := s.query(`SELECT count(*) FROM (SELECT 1 FROM device_bundle_history GROUP BY deployment_id, device_id HAVING count(*) > 1) twice`); n != 0 {
		t.Errorf("%d targets have two terminal results", n)
	}
	if code := b.stop(); code != 0 {
		t.Errorf("SIGTERM: exit code %d", code)
	}
}

func (s *site) count(deployment string, state fleet.TargetState) int {
	n := 0
	for _, target := range s.Targets(deployment) {
		if target.State == state {
			n++
		}
	}
	return n
}

// query reads one number, behind the program's back.
func (s *site) query(q string, args ...any) (n int) {
	s.t.Helper()
	db, err := sql.Open("postgres", s.DSN)
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(s.t.Context(), q, args...).Scan(&n); err != nil {
		s.t.Fatal(err)
	}
	return n
}

func TestRevocationEndsAConnectionWithTheKickAndWithoutIt(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.replica()
	s.serveBroker(r)
	r.awaitReady(http.StatusOK)
	kicked, swept, stays := s.register(), s.register(), s.register()
	for _, d := range []*device{kicked, swept, stays} {
		d.connect()
	}
	begin := time.Now()
	if _, err := s.DB.SetCredential(t.Context(), kicked.id, "", fleet.CredentialRevoked, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 5*time.Second, func() bool { return kicked.client.Err() != nil })
	t.Logf("kicked after %v", time.Since(begin).Round(time.Millisecond))
	begin = time.Now()
	s.query(`WITH u AS (UPDATE devices SET status = 'revoked', auth_epoch = auth_epoch + 1, updated_at = now() WHERE id = $1 RETURNING 1) SELECT count(*) FROM u`, swept.id)
	testkit.Eventually(t, 5*time.Second, func() bool { return swept.client.Err() != nil })
	t.Logf("without a kick after %v", time.Since(begin).Round(time.Millisecond))
	for _, d := range []*device{kicked, swept} {
		_, err := d.dial(t)
		var refused *mqttclient.Refused
		if !errors.As(err, &refused) || !refused.BadCredential() {
			t.Errorf("a revoked device: %v", err)
		}
	}
	if stays.client.Err() != nil {
		t.Error("another device was disconnected")
	}
}

func TestWithoutAnOrchestratorNobodyGetsInAndWhoIsInStays(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.replica()
	s.serveBroker(r)
	r.awaitReady(http.StatusOK)
	in, out := s.register(), s.register()
	in.connect()
	testkit.Eventually(t, 10*time.Second, func() error { return s.auth.Ready(t.Context()) })
	r.kill()
	_, err := out.dial(t)
	var refused *mqttclient.Refused
	if !errors.As(err, &refused) || refused.BadCredential() {
		t.Fatalf("without an orchestrator: %v, want CONNACK 3", err)
	}
	testkit.Eventually(t, 20*time.Second, func() bool { return s.auth.Ready(t.Context()) != nil })
	if in.client.Err() != nil {
		t.Fatal("a connected device was disconnected")
	}
	again := s.replica("--internal", r.internal)
	again.awaitReady(http.StatusOK)
	out.connect()
	testkit.Eventually(t, 20*time.Second, func() error { return s.auth.Ready(t.Context()) })
}

func TestABrokerThatIsAwayIsNamedAndComesBack(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.url = "tcp://" + s.proxy.Addr()
	// A schema that a newer version has migrated further is worked with.
	s.query(`WITH i AS (INSERT INTO goose_db_version (version_id, is_applied) VALUES (90001, true) RETURNING 1) SELECT count(*) FROM i`)
	r := s.replica("--postgres", s.DSN+" binary_parameters=yes") // a pooler, and no way past it: polling
	s.serveBroker(r)
	r.awaitReady(http.StatusOK)
	s.proxy.Refuse()
	if body := r.awaitReady(http.StatusServiceUnavailable); !strings.Contains(body, `"broker":"failed"`) || !strings.Contains(body, `"postgres":"ok"`) {
		t.Errorf("/readyz: %s", body)
	}
	if status, _ := r.get("/livez"); status != http.StatusOK {
		t.Errorf("/livez: %d", status)
	}
	s.proxy.Restore()
	r.awaitReady(http.StatusOK)

	d := s.register()
	d.connect()
	id := s.Deploy(s.bundle("1.0.0"), d.id)
	testkit.Eventually(t, 30*time.Second, func() bool { return s.Deployment(id).Status == fleet.DeploymentSuccess })

	// What a monitor reads was published again.
	watch := make(chan string, 64)
	token, err := s.DB.ReplicaToken(t.Context(), "test", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err := mqttclient.Dial(t.Context(), mqttclient.Options{Broker: s.url, ClientID: "watch", Username: "service", Password: token,
		OnMessage: func(topic string, _ []byte) {
			select {
			case watch <- topic:
			default:
			}
		}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	if err := c.Subscribe(t.Context(), s.Topics.FleetSummary(), 1); err != nil {
		t.Fatal(err)
	}
	select {
	case <-watch:
	case <-time.After(10 * time.Second):
		t.Error("the summary is not retained")
	}
}
