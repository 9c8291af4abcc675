package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kernexhq/kernex/orchestrator"
	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/orchestrator/objectstore"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/pkg/testkit/s3test"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// world is a whole orchestrator on real Postgres and a real object store. Its
// devices speak the protocol without a broker between.
type world struct {
	t     *testing.T
	orch  *orchestrator.Orchestrator
	url   string
	token string
	dir   string

	mu      sync.Mutex
	devices map[string]*device
}

// device answers each command once, as its test says.
type device struct {
	id     string
	done   map[string]bool
	answer func(protocol.Command) []protocol.Result // nil: it never answers
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), devices: map[string]*device{}}
	s3 := s3test.Start(t)
	tokenFile := filepath.Join(w.dir, "admin.token")
	var err error
	w.orch, err = orchestrator.New(t.Context(), orchestrator.Config{
		HTTP: "127.0.0.1:0", Postgres: testkit.Postgres(t), MaxConns: 8, Topics: protocol.NewTopics(""), Logger: testkit.Logger(t),
		Objects:        objectstore.Config{Endpoint: s3.URL, Region: s3.Region, AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, Bucket: "bundles", AllowInsecure: true},
		CommandKeyFile: filepath.Join(w.dir, "command.key"), AdminTokenFile: tokenFile,
	}, w)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.orch.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("orchestrator: %v", err)
		}
	})
	if w.token, err = readToken(tokenFile); err != nil {
		t.Fatal(err)
	}
	w.url = "http://" + w.orch.Addr().String()
	return w
}

// Publish implements orchestrator.Transport: a command reaches its device.
func (w *world) Publish(_ context.Context, topic string, payload []byte, _ byte, _ bool) error {
	kind, id, ok := protocol.NewTopics("").Parse(topic)
	if !ok || kind != protocol.KindCommand {
		return nil
	}
	body, err := base64.RawURLEncoding.DecodeString(strings.Split(string(payload), ".")[1])
	if err != nil {
		return err
	}
	var c protocol.Command
	if err := json.Unmarshal(body, &c); err != nil {
		return err
	}
	w.mu.Lock()
	d := w.devices[id]
	again := d == nil || d.done[c.ID] || d.answer == nil
	if !again {
		d.done[c.ID] = true
	}
	w.mu.Unlock()
	if again {
		return nil
	}
	for _, r := range d.answer(c) {
		r.Command, r.Attempt = c.ID, 1
		w.receive(id, protocol.KindResult, r)
	}
	return nil
}

// Kick implements orchestrator.Transport.
func (w *world) Kick(string) {}

// Recheck implements orchestrator.Transport.
func (w *world) Recheck(func(bool, string, int64) bool) {}

func (w *world) receive(id string, kind protocol.Kind, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		w.t.Error(err)
		return
	}
	w.orch.Receive(protocol.NewTopics("").Device(id, kind), b)
}

// addDevice registers a device and brings it online.
func (w *world) addDevice(labels fleet.Labels, answer func(protocol.Command) []protocol.Result) string {
	w.t.Helper()
	key, err := identity.Generate(identity.KindEd25519)
	if err != nil {
		w.t.Fatal(err)
	}
	d, err := w.api().RegisterDevice(w.t.Context(), fleet.Registration{PublicKey: string(key.Public().PEM()), Labels: labels})
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.devices[d.ID] = &device{id: d.ID, done: map[string]bool{}, answer: answer}
	w.mu.Unlock()
	w.receive(d.ID, protocol.KindState, protocol.State{Session: 1, Boot: "b", StateRev: 1, Status: "healthy", AgentVersion: "1.0.0", OS: "linux", Arch: "amd64", ConfigVersion: 1, ConfigOutcome: "applied"})
	w.eventually("the device to be online", func() bool {
		d, err := w.api().Device(w.t.Context(), d.ID)
		return err == nil && d.Status == "online"
	})
	return d.ID
}

func (w *world) api() *client.Client {
	w.t.Helper()
	c, err := client.New(w.url, w.token)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

func (w *world) eventually(what string, cond func() bool) {
	w.t.Helper()
	testkit.Eventually(w.t, waitLimit, func() error {
		if cond() {
			return nil
		}
		return fleet.Errorf(fleet.CodeTimeout, "still waiting for %s", what)
	})
}

// good says that a command was done; bad that its health check failed and the
// device has returned to what it ran.
func good(protocol.Command) []protocol.Result {
	return []protocol.Result{{State: fleet.TargetAccepted}, {State: fleet.TargetVerifying, Step: "health"}, {State: fleet.TargetSucceeded, DurationMS: 1200}}
}

func bad(protocol.Command) []protocol.Result {
	return []protocol.Result{{State: fleet.TargetAccepted}, {
		State: fleet.TargetRolledBack, Step: "health", Output: "line one\nmodel.bin: \x1b[31mno such file",
		Error: &protocol.ErrorDetail{Code: fleet.CodeHealth, Message: "health check exited 3: model missing"},
	}}
}

// output collects what a command prints, also while it runs.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// env is the environment of a command under test.
func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

func (w *world) start(ctx context.Context, stdout, stderr io.Writer, args ...string) int {
	return run(ctx, args, stdout, stderr, env(map[string]string{"KERNEX_URL": w.url, "KERNEX_TOKEN": w.token}))
}

// kernex runs a command that must end with code and returns what it printed.
func (w *world) kernex(code int, args ...string) (stdout, stderr string) {
	w.t.Helper()
	var out, errs output
	if got := w.start(w.t.Context(), &out, &errs, args...); got != code {
		w.t.Fatalf("kernex %q: exit code %d, want %d\nstdout: %s\nstderr: %s", args, got, code, &out, &errs)
	}
	return out.String(), errs.String()
}

// kernexJSON runs a command with -o json and decodes its answer.
func kernexJSON[T any](w *world, code int, args ...string) (v T) {
	w.t.Helper()
	out, _ := w.kernex(code, append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		w.t.Fatalf("kernex %q: %v in %s", args, err, out)
	}
	return v
}

// contains checks that text holds every part, in any order.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is missing in:\n%s", p, text)
		}
	}
}

// bundleDir makes the source of a bundle with init and sets its version.
func (w *world) bundleDir(version string) string {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), "vision")
	w.kernex(exitDone, "bundle", "init", dir)
	w.setVersion(dir, version)
	return dir
}

func (w *world) setVersion(dir, version string) {
	w.t.Helper()
	file := filepath.Join(dir, "manifest.json")
	b, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, bytes.Replace(b, []byte(`"0.1.0"`), []byte(`"`+version+`"`), 1), 0o644)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}
