package attack

import (
	"bytes"
	"context"
	"database/sql"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	_ "github.com/lib/pq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/agent/run"
	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/orchestrator"
	"github.com/kernexhq/kernex/orchestrator/objectstore"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/pkg/testkit/s3test"
)

// The test binary is also the shim of the agent that one of the tests runs.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == run.ShimCommand {
		os.Exit(run.Shim(os.Args[2:]))
	}
	testkit.Main(m)
}

var topics = protocol.NewTopics("")

// system is a live installation as kernex up wires it.
type system struct {
	orch     *orchestrator.Orchestrator
	broker   *broker.Broker
	internal *httptest.Server // what brokers on other hosts ask
	db       *sql.DB
	s3       *s3test.Store
	path     *testkit.Proxy // devices' way to the object store
	reg      *prometheus.Registry
	logs     *logbook
	url      string
	mqtt     string // host:port
	admin    string
	fleet    string
	shared   string // the secret of brokers on other hosts
}

// wire connects the orchestrator and the broker in both directions.
type wire struct {
	*broker.Broker
	orch *orchestrator.Orchestrator
}

func (w *wire) Kick(id string) {
	w.Broker.Kick(id)
	w.Sweep(func(g broker.Grant) bool { return g.ID != id })
}

func (w *wire) Recheck(holds func(device bool, id string, epoch int64) bool) {
	w.Sweep(func(g broker.Grant) bool { return holds(g.Role == broker.RoleDevice, g.ID, g.Epoch) })
}

func (w *wire) Authorize(ctx context.Context, l broker.Login) (broker.Grant, error) {
	a, err := w.orch.Authorize(ctx, l.Username, l.ClientID, l.Password)
	return broker.Grant{Role: broker.Role(a.Role), ID: a.ID, Restricted: a.Restricted, Epoch: a.Epoch, Expires: a.Expires}, err
}

// start runs a system until the test ends; then no log may hold a secret.
func start(t *testing.T) *system {
	t.Helper()
	s := &system{s3: s3test.Start(t), reg: prometheus.NewRegistry(), logs: &logbook{}, shared: strings.Repeat("shared-", 6)}
	log := zerolog.New(s.logs).Level(zerolog.DebugLevel)
	s.path = testkit.NewProxy(t, strings.TrimPrefix(s.s3.URL, "http://"))
	dsn, dir := testkit.Postgres(t), t.TempDir()
	var err error
	if s.db, err = sql.Open("postgres", dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.db.Close() })
	if s.broker, err = broker.New(broker.Config{Addr: "127.0.0.1:0", MaxClients: 4096, Logger: log, Registerer: s.reg}); err != nil {
		t.Fatal(err)
	}
	w := &wire{Broker: s.broker}
	admin := filepath.Join(dir, "admin.token")
	s.orch, err = orchestrator.New(t.Context(), orchestrator.Config{
		HTTP: "127.0.0.1:0", Postgres: dsn, MaxConns: 12, Topics: topics, Logger: log, Registry: s.reg,
		Objects:        objectstore.Config{Endpoint: s.s3.URL, PublicURL: "http://" + s.path.Addr(), Region: s.s3.Region, AccessKey: s.s3.AccessKey, SecretKey: s.s3.SecretKey, Bucket: "bundles", AllowInsecure: true},
		CommandKeyFile: filepath.Join(dir, "command.key"), AdminTokenFile: admin, MaxBundle: 8 << 20,
	}, w)
	if err != nil {
		t.Fatal(err)
	}
	w.orch = s.orch
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.orch.Run(ctx); err != nil {
			t.Errorf("orchestrator: %v", err)
		}
	})
	done.Go(func() {
		if err := s.broker.Serve(ctx, w, s.orch); err != nil {
			t.Errorf("broker: %v", err)
		}
	})
	handler, err := s.orch.Internal(s.shared)
	if err != nil {
		t.Fatal(err)
	}
	s.internal = httptest.NewServer(handler)
	t.Cleanup(func() {
		s.internal.Close()
		client.CloseIdleConnections()
		stop()
		done.Wait()
		if gateway, err := os.ReadFile(filepath.Join(s.s3.Dir, "gateway.log")); err == nil { // the object store's own
			_, _ = s.logs.Write(gateway)
		}
		s.logs.check(t, s.admin, s.s3.SecretKey, s.shared)
	})
	b, err := os.ReadFile(admin)
	if err != nil {
		t.Fatal(err)
	}
	s.admin, s.url, s.mqtt = strings.TrimSpace(string(b)), "http://"+s.orch.Addr().String(), s.broker.Addr().String()
	s.fleet = value[string](t, s, `SELECT value #>> '{}' FROM settings WHERE name = 'fleet'`)
	return s
}

// value reads one value of the database.
func value[T any](t *testing.T, s *system, q string, args ...any) (v T) {
	t.Helper()
	if err := s.db.QueryRowContext(t.Context(), q, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return v
}

func (s *system) exec(t *testing.T, q string, args ...any) {
	t.Helper()
	if _, err := s.db.ExecContext(t.Context(), q, args...); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
}

// metric adds up a counter over the series that have the labels, "name=value".
func (s *system) metric(t *testing.T, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := s.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			has := map[string]bool{}
			for _, l := range m.GetLabel() {
				has[l.GetName()+"="+l.GetValue()] = true
			}
			match := true
			for _, l := range labels {
				match = match && has[l]
			}
			if match {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// logbook keeps every line of every part at level debug, as it was written:
// before the redactor, which is the second line of defence.
type logbook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// secrets are what tokens, JWTs, signed commands and presigned URLs look like.
var secrets = regexp.MustCompile(`k[xer]_[A-Za-z0-9_-]{8,}|eyJ[A-Za-z0-9_-]{8,}\.|(?i:X-Amz-Signature|X-Amz-Credential)(=|%3D)[^&\s"]+|BEGIN [A-Z ]*PRIVATE KEY`)

// check fails the test if a line holds a secret, by its looks or one of these.
func (l *logbook) check(t *testing.T, known ...string) {
	t.Helper()
	text := l.String()
	if text == "" {
		t.Error("nothing was logged")
	}
	for line := range strings.SplitSeq(text, "\n") {
		if found := secrets.FindString(line); found != "" {
			t.Errorf("a log holds %s...: %s", found[:min(len(found), 12)], line)
		}
		for _, k := range known {
			if k != "" && strings.Contains(line, k) {
				t.Errorf("a log holds a known secret: %s", line)
			}
		}
	}
}
