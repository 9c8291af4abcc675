package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/httpauth"
	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/orchestrator/objectstore"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/pkg/testkit/s3test"
)

// programEnv turns the test binary into the program.
const programEnv = "KERNEX_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		os.Exit(program(os.Args[1:]))
	}
	testkit.Main(m)
}

// site is real Postgres, a real object store and a real broker whose logins
// replicas decide on; replicas are processes.
type site struct {
	*looptest.Scene
	t      *testing.T
	s3     *s3test.Store
	dir    string
	broker *broker.Broker
	auth   *httpauth.Authorizer
	url    string // the broker's, behind proxy
	proxy  *testkit.Proxy
	fleet  string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, Scene: looptest.Open(t), s3: s3test.Start(t), dir: t.TempDir()}
	s.write("shared.secret", rand.Text()+rand.Text())
	s.write("s3.key", s.s3.SecretKey)
	var err error
	if s.fleet, err = s.DB.FleetName(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.broker, err = broker.New(broker.Config{Addr: "127.0.0.1:0", MaxClients: 4096, Logger: testkit.Logger(t).Level(zerolog.WarnLevel), OnKick: func(id string) { s.auth.Forget(id) }}); err != nil {
		t.Fatal(err)
	}
	s.proxy = testkit.NewProxy(t, s.broker.Addr().String())
	s.url = "tcp://" + s.broker.Addr().String()
	return s
}

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) secret(name string) string {
	s.t.Helper()
	b, err := os.ReadFile(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// serveBroker runs the broker until the test ends; replicas decide on logins.
func (s *site) serveBroker(replicas ...*process) {
	s.t.Helper()
	var urls []string
	for _, r := range replicas {
		urls = append(urls, "http://"+r.internal)
	}
	s.serve(httpauth.Config{URLs: urls, Secret: s.secret("shared.secret"), Log: testkit.Logger(s.t)})
}

// serve runs the broker until the test ends.
func (s *site) serve(cfg httpauth.Config) {
	s.t.Helper()
	a, err := httpauth.New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.auth = a
	b := s.broker
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := b.Serve(ctx, a, nil); err != nil {
			s.t.Errorf("broker: %v", err)
		}
	})
	done.Go(func() { _ = a.Watch(ctx, b) })
	s.t.Cleanup(func() {
		cancel()
		done.Wait()
		a.Close()
	})
}

// discard lets go of a broker that was not served.
func (s *site) discard(b *broker.Broker) {
	s.t.Helper()
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.Serve(ended, nil, nil); err != nil {
		s.t.Error(err)
	}
}

// process is one running program.
type process struct {
	t        *testing.T
	cmd      *exec.Cmd
	args     []string
	http     string
	internal string
	exited   chan struct{}
	found    chan struct{} // closed when both addresses are known

	mu  sync.Mutex
	log bytes.Buffer
}

// replica starts an orchestrator and waits until it runs. Later flags win over
// the usual ones.
func (s *site) replica(flags ...string) *process {
	s.t.Helper()
	args := append([]string{
		"--http", "127.0.0.1:0", "--internal", "127.0.0.1:0", "--secret-file", s.path("shared.secret"), "--postgres", s.DSN, "--postgres-conns", "8",
		"--s3-endpoint", s.s3.URL, "--s3-region", s.s3.Region, "--s3-bucket", "bundles", "--s3-access-key", s.s3.AccessKey,
		"--s3-secret-key-file", s.path("s3.key"), "--s3-insecure", "--broker", s.url, "--command-key-file", s.path("command.key"),
		"--admin-token-file", s.path("admin.token"), "--log-format", "json",
	}, flags...)
	return start(s.t, args)
}

func start(t *testing.T, args []string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, args: args, cmd: exec.Command(self, args...), exited: make(chan struct{}), found: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), programEnv+"=1")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = in, in
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	go func() {
		p.read(out)
		_ = out.Close()
		_ = p.cmd.Wait() // its status is in ProcessState
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%v", p.words())
		}
	})
	select {
	case <-p.found:
	case <-p.exited:
		t.Fatalf("the program ended: %s", p.words())
	case <-time.After(60 * time.Second):
		t.Fatalf("the program does not run: %s", p.words())
	}
	return p
}

// read keeps the log and finds the addresses in it.
func (p *process) read(out io.Reader) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var line struct{ Message, Addr, HTTP string }
		_ = json.Unmarshal(lines.Bytes(), &line) // other lines have neither
		p.mu.Lock()
		p.log.Write(append(lines.Bytes(), '\n'))
		p.mu.Unlock()
		switch line.Message {
		case "answering brokers":
			p.internal = line.Addr
		case "orchestrator running":
			p.http = line.HTTP
			close(p.found)
		}
	}
}

func (p *process) words() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // ended already is as good
	<-p.exited
}

// stop is SIGTERM; it returns the exit code.
func (p *process) stop() int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		p.t.Fatalf("SIGTERM does not end the program: %s", p.words())
	}
	return p.cmd.ProcessState.ExitCode()
}

// get asks one of the program's HTTP endpoints.
func (p *process) get(path string) (int, string) {
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://"+p.http+path, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// awaitReady waits until /readyz answers with status.
func (p *process) awaitReady(status int) string {
	p.t.Helper()
	var body string
	testkit.Eventually(p.t, 40*time.Second, func() error {
		var got int
		if got, body = p.get("/readyz"); got != status {
			return fleet.Errorf(fleet.CodeUnavailable, "/readyz: %d %s", got, body)
		}
		return nil
	})
	return body
}

// metric reads one number of /metrics.
func (p *process) metric(name string) float64 {
	p.t.Helper()
	_, body := p.get("/metrics")
	for line := range strings.SplitSeq(body, "\n") {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(rest, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return v
		}
	}
	return 0
}

// bundle stores a bundle's row and some bytes under its key.
func (s *site) bundle(version string) fleet.Bundle {
	s.t.Helper()
	b := s.Bundle("vision", version)
	store, err := objectstore.New(objectstore.Config{
		Endpoint: s.s3.URL, Region: s.s3.Region, AccessKey: s.s3.AccessKey, SecretKey: s.s3.SecretKey, Bucket: "bundles", AllowInsecure: true,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := store.Put(s.t.Context(), b.ObjectKey, strings.NewReader("bytes"), 5); err != nil {
		s.t.Fatal(err)
	}
	return b
}
