package systemtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/orchestrator/cmd/kernex/up"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// patience bounds every wait: the longest thing waited for is a deployment with
// a health window of 15 s after an outage, on a busy machine.
const patience = 2 * time.Minute

var programs struct {
	dir string
	sync.Once
	err error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if programs.dir != "" {
		_ = os.RemoveAll(programs.dir)
	}
	os.Exit(code)
}

// root is the checkout.
func root(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("find the module: %v", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

// bin builds the programs and the example bundles once and returns the folder
// of the programs; bundles are in its subfolders by version.
func bin(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv(labEnv); dir != "" { // built already, by the process that started this one
		return dir
	}
	programs.Do(func() {
		programs.err = func() error {
			dir, err := os.MkdirTemp("", "kernex-system-")
			if err != nil {
				return err
			}
			programs.dir = dir
			example := filepath.Join(root(t), "deployments/examples/edge-inference")
			build := exec.Command("go", "build", "-trimpath", "-o", dir+"/",
				"./orchestrator/cmd/kernex", "./orchestrator/cmd/kernex-orchestrator", "./broker/cmd/kernex-broker", "./agent/cmd/kernex-agent", "./deployments/examples/edge-inference/server")
			build.Dir = root(t)
			build.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				return fmt.Errorf("build the programs: %w: %s", err, out)
			}
			for _, v := range []string{"1.0.0", "1.1.0", "2.0.0"} {
				if err := os.CopyFS(filepath.Join(dir, v), os.DirFS(filepath.Join(example, v))); err != nil {
					return err
				}
				_ = os.Remove(filepath.Join(dir, v, "server")) // make build may have left one
				if err := os.Link(filepath.Join(dir, "server"), filepath.Join(dir, v, "server")); err != nil {
					return err
				}
			}
			return nil
		}()
	})
	if programs.err != nil {
		t.Fatal(programs.err)
	}
	return programs.dir
}

// process is a running program whose output the test can read.
type process struct {
	t    testing.TB
	name string
	cmd  *exec.Cmd
	done chan struct{}
	mu   sync.Mutex
	out  bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// start runs a program until the test ends; its output is shown if that failed.
func start(t testing.TB, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: name, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p, p
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // how it ended is in its output
	}()
	t.Cleanup(func() {
		p.stop(syscall.SIGTERM)
		if t.Failed() {
			out := p.output()
			t.Logf("%s printed:\n%s", name, out[max(0, len(out)-6000):])
		}
	})
	return p
}

// stop signals the program and waits for its end; one that does not end in time
// is killed and fails the test.
func (p *process) stop(sig syscall.Signal) {
	p.t.Helper()
	_ = p.cmd.Process.Signal(sig) // it may have ended
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
		p.t.Errorf("%s did not end within 20 s of %v", p.name, sig)
	}
}

// dataDir is a folder for kernex up that the Postgres user can reach, so that
// the cluster goes away with it.
func dataDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// system is a `kernex up` with its client.
type system struct {
	t     testing.TB
	dir   string
	addr  up.Addresses
	api   *client.Client
	token string
	proc  *process
}

// startUp runs `kernex up` on dir, on free ports or on those of before, and
// waits until it is ready.
func startUp(t testing.TB, dir string, before *up.Addresses, args ...string) *system {
	t.Helper()
	at := up.Addresses{HTTP: "127.0.0.1:0", MQTT: "127.0.0.1:0", S3: "127.0.0.1:0"}
	if before != nil {
		at = *before
		at.S3 = strings.TrimPrefix(at.S3, "http://")
	}
	file := filepath.Join(dir, "addresses.json")
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin(t), "kernex"), append([]string{
		"up", "--data", dir, "--http", at.HTTP, "--mqtt", at.MQTT, "--s3-listen", at.S3, "--log-format", "json", "--log-level", "warn"}, args...)...)
	s := &system{t: t, dir: dir, proc: start(t, "kernex up", cmd)}
	testkit.Eventually(t, patience, func() error {
		select {
		case <-s.proc.done:
			t.Fatalf("kernex up ended: %s", s.proc.output())
		default:
		}
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &s.addr); err != nil {
			return err
		}
		r, err := http.Get("http://" + s.addr.HTTP + "/readyz")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz answers %s", r.Status)
		}
		return nil
	})
	token, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		t.Fatal(err)
	}
	s.token = strings.TrimSpace(string(token))
	if s.api, err = client.New("http://"+s.addr.HTTP, s.token); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.api.Close)
	return s
}

// kernex runs the CLI and returns what it printed and its exit status.
func (s *system) kernex(args ...string) (out string, code int) {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(bin(s.t), "kernex"), args...)
	cmd.Env = append(os.Environ(), "KERNEX_URL=http://"+s.addr.HTTP, "KERNEX_TOKEN="+s.token)
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("kernex %v: %v", args, err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// must runs the CLI and fails the test unless it exits with 0.
func (s *system) must(args ...string) string {
	s.t.Helper()
	out, code := s.kernex(args...)
	if code != 0 {
		s.t.Fatalf("kernex %v: exit %d: %s", args, code, out)
	}
	return out
}

// agents enrols n devices labelled fleet=test and waits until they are online.
func (s *system) agents(n int) []*agent {
	s.t.Helper()
	tok, err := s.api.CreateEnrollmentToken(s.t.Context(), client.NewEnrollmentToken{Labels: fleet.Labels{"fleet": "test"}, MaxUses: n, AutoApprove: true})
	if err != nil {
		s.t.Fatal(err)
	}
	list := make([]*agent, n)
	for i := range list {
		list[i] = startAgent(s.t, s.t.TempDir(), s.addr.MQTT, tok.Token)
	}
	testkit.Eventually(s.t, patience, func() error {
		got, err := s.api.Devices(context.Background(), client.DeviceFilter{Selector: "fleet=test", Status: "online"}, 1000)
		if err == nil && len(got.Items) != n {
			err = fmt.Errorf("%d of %d devices are online", len(got.Items), n)
		}
		return err
	})
	return list
}
