package postgres_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/orchestrator/postgres"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func TestEventsGetConsecutiveNumbersInTheOrderOfTheirWriting(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a := s.Device()
	for i := range 5 {
		s.Birth(a, int64(i+1))
		flush(t, s, fleet.Beat{DeviceID: a, Gone: int64(i + 1)})
	}
	g, ok, err := s.DB.AcquireLease(t.Context(), postgres.LeaseEvents, "one", time.Minute)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	total := 0
	for {
		n, err := s.DB.NumberEvents(t.Context(), g, 3)
		if err != nil {
			t.Fatal(err)
		}
		if total += n; n == 0 {
			break
		}
	}
	list, _, err := s.DB.EventsAfter(t.Context(), 0, nil, nil, 100)
	if err != nil || len(list) != total || total != 11 {
		t.Fatalf("%d events of %d, %v", len(list), total, err)
	}
	for i, e := range list {
		if e.Number != int64(i+1) || i > 0 && e.At.Before(list[i-1].At) {
			t.Fatalf("event %d is %+v", i, e)
		}
	}
	if n := value[int](t, s, `SELECT count(*) FROM events e JOIN events f ON f.id > e.id AND f.number < e.number`); n != 0 {
		t.Fatalf("%d pairs are out of order", n)
	}
}

func TestLeaseOfAnEarlierGenerationNumbersNothing(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	s.Online()
	ctx := t.Context()
	old, ok, err := s.DB.AcquireLease(ctx, postgres.LeaseEvents, "one", time.Minute)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	if _, ok, err := s.DB.AcquireLease(ctx, postgres.LeaseEvents, "two", time.Minute); err != nil || ok {
		t.Fatalf("a lease has two holders: %v, %v", ok, err)
	}
	if again, ok, err := s.DB.AcquireLease(ctx, postgres.LeaseEvents, "one", time.Minute); err != nil || !ok || again != old {
		t.Fatalf("renewed as %d, %v, %v", again, ok, err)
	}
	if err := s.DB.ReleaseLease(ctx, postgres.LeaseEvents, "one"); err != nil {
		t.Fatal(err)
	}
	g, ok, err := s.DB.AcquireLease(ctx, postgres.LeaseEvents, "two", time.Minute)
	if err != nil || !ok || g != old+1 {
		t.Fatalf("generation %d, %v, %v", g, ok, err)
	}
	if _, err := s.DB.NumberEvents(ctx, old, 10); fleet.ErrorCode(err) != fleet.CodeConflict {
		t.Fatalf("the old holder numbers events: %v", err)
	}
	if err := s.DB.SetPublishedEvents(ctx, old, 5); fleet.ErrorCode(err) != fleet.CodeConflict {
		t.Fatalf("the old holder stores its position: %v", err)
	}
}

func TestConcurrentWritersAndPublishersLoseNoEvent(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	ids := []string{s.Device(), s.Device(), s.Device(), s.Device()}
	ctx, stop := context.WithCancel(t.Context())
	var numbering, writing sync.WaitGroup
	for _, holder := range []string{"one", "two"} {
		numbering.Go(func() {
			for ctx.Err() == nil {
				if g, ok, err := s.DB.AcquireLease(ctx, postgres.LeaseEvents, holder, 20*time.Millisecond); err == nil && ok {
					_, _ = s.DB.NumberEvents(ctx, g, 3) // may lose its lease: that is the test
				}
			}
		})
	}
	for _, id := range ids {
		writing.Go(func() {
			for n := range 20 {
				s.Birth(id, int64(n+1))
				flush(t, s, fleet.Beat{DeviceID: id, Gone: int64(n + 1)})
			}
		})
	}
	writing.Wait()
	testkit.Eventually(t, 10*time.Second, func() bool { return value[int](t, s, `SELECT count(*) FROM events WHERE number IS NULL`) == 0 })
	stop()
	numbering.Wait()
	want := len(ids)*40 + len(ids) // online and offline each, and registered
	if n, top := value[int](t, s, `SELECT count(DISTINCT number) FROM events`), value[int](t, s, `SELECT max(number) FROM events`); n != want || top != want {
		t.Fatalf("%d numbers up to %d, want %d", n, top, want)
	}
}

func TestPartitionsAreMadeAheadAndDroppedByAge(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	ctx := t.Context()
	run(t, s, `INSERT INTO heartbeats (device_id, at, status, uptime_s) VALUES ('a', now(), 'healthy', 1), ('a', now() - interval '20 days', 'healthy', 1)`)
	for range 2 {
		if err := s.DB.EnsurePartitions(ctx, 3); err != nil {
			t.Fatal(err)
		}
	}
	if n := value[int](t, s, `SELECT count(*) FROM pg_inherits WHERE inhparent = 'heartbeats'::regclass`); n != 5 {
		t.Fatalf("%d partitions, want today, 3 ahead and the default", n)
	}
	if n := value[int](t, s, `SELECT count(*) FROM heartbeats_default`); n != 1 {
		t.Fatalf("%d rows stayed in the default partition", n)
	}
	run(t, s, `CREATE TABLE heartbeats_20200101 PARTITION OF heartbeats FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z')`)
	if n, err := s.DB.DropPartitions(ctx, 7*24*time.Hour); err != nil || n != 1 {
		t.Fatalf("dropped %d, %v", n, err)
	}
	if n := value[int](t, s, `SELECT count(*) FROM heartbeats`); n != 1 {
		t.Fatalf("%d samples are left", n)
	}
}

func TestPurgeKeepsTheNewestEventAndRecentKeys(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	run(t, s, `INSERT INTO events (number, at, type, subject) SELECT n, now() - interval '40 days', 'x', 'y' FROM generate_series(1, 9) n`)
	run(t, s, `INSERT INTO idempotency_keys (token_id, key, request, created_at) VALUES ('t', 'old', '', now() - interval '25 hours'), ('t', 'new', '', now())`)
	if n, err := s.DB.Purge(t.Context(), 30*24*time.Hour); err != nil || n != 9 {
		t.Fatalf("removed %d, %v", n, err)
	}
	if n := value[int](t, s, `SELECT max(number) FROM events`); n != 9 {
		t.Fatalf("the newest event is %d", n)
	}
	if k := value[string](t, s, `SELECT string_agg(key, ',') FROM idempotency_keys`); k != "new" {
		t.Fatalf("keys are %s", k)
	}
}

func TestListenerWakesByNotificationAndByPolling(t *testing.T) {
	s := looptest.Open(t)
	before := goleak.IgnoreCurrent()
	for name, dsn := range map[string]string{"notification": s.DSN, "polling": ""} {
		l := postgres.NewListener(dsn, testkit.Logger(t))
		wake, other := l.Wake(postgres.WorkRollout), l.Wake("other")
		kicked := make(chan string, 10)
		l.OnKick(func(id string) { kicked <- id })
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		<-wake // at the start there may be work
		<-other
		if dsn != "" {
			testkit.Eventually(t, 5*time.Second, func() error {
				run(t, s, `SELECT pg_notify('kernex', 'kick:d1')`)
				select {
				case id := <-kicked:
					if id == "d1" {
						return nil
					}
				default:
				}
				return errors.New("no kick")
			})
			run(t, s, `SELECT pg_notify('kernex', 'rollout')`)
		}
		select {
		case <-wake:
		case <-time.After(2 * postgres.PollInterval):
			t.Fatalf("no wake-up by %s", name)
		}
		stop()
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	goleak.VerifyNone(t, before)
}
