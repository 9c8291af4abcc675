package crashtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/agent/run"
	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/logging"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// patience bounds everything that a device may take to end a command; I6 gives
// it 60 s. A device that was broken on purpose gets less.
const (
	patience      = 60 * time.Second
	shortPatience = 6 * time.Second
)

// device is one device of a worker: its points follow each other, so that each
// costs no new identity.
type device struct {
	bundles
	server *server
	view   *view
	serial string
	root   string // of all below
	dir    string // state directory
	did    string // the scripts' evidence
	bases  []*node
	output *lines
	waits  time.Duration // patience or less
}

// newDevice makes a device with bases: nothing, enrolled with the old release,
// enrolled with the good release after the old.
func newDevice(t *testing.T, s *server, b bundles, serial string) *device {
	t.Helper()
	root, err := os.MkdirTemp(fastDir(), "kernex-crash-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	d := &device{bundles: b, server: s, serial: serial, root: root, dir: filepath.Join(root, "dev"), did: filepath.Join(root, "did"), output: &lines{}, waits: patience}
	d.view = newView(s)
	s.mu.Lock()
	s.serials[serial] = d.view
	s.mu.Unlock()
	d.bases = []*node{newDir()}
	p := d.start(nil)
	for _, ref := range []protocol.BundleRef{b.old, b.good} {
		d.settled(t, p, func() { d.view.order(deploy(protocol.CommandDeploy, ref)) })
		_ = p.stop()
		base, err := load(d.dir, transient)
		if err != nil {
			t.Fatal(err)
		}
		d.bases = append(d.bases, base)
		p = d.start(nil)
	}
	_ = p.stop()
	return d
}

// fastDir is a file system in memory where there is one: fsync is modelled, not
// measured.
func fastDir() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

// transient is what a device keeps outside of the seam: the lock, the room that
// is kept for the journal, the bundle's own data and its log.
func transient(rel string) bool {
	return rel == "lock" || rel == "journal.reserve" || rel == "log" || strings.HasPrefix(rel, "state/") || strings.HasPrefix(rel, "log/")
}

// restore puts the tree in place and lets the server and the evidence be as
// they were.
func (d *device) restore(tree *node, did []byte, mark []event) error {
	if err := os.RemoveAll(d.dir); err != nil {
		return err
	}
	if err := tree.write(d.dir); err != nil {
		return err
	}
	if err := os.WriteFile(d.did, did, 0o600); err != nil {
		return err
	}
	d.view.rewind(mark)
	return nil
}

func (d *device) config(files *durable.FS) agent.Config {
	return agent.Config{State: d.dir, Broker: d.server.broker.URL, EnrollToken: claimToken, Serial: d.serial, KeyType: identity.KindEd25519, LogLevel: "debug",
		Log: logging.Config{Out: d.output, Format: "json"}, Files: files, Retry: 20 * time.Millisecond, Shim: []string{binaries.agent(), run.ShimCommand}}
}

// runner is a running agent.
type runner struct {
	stop func() error // how it ended: nil, if it was because of the stop
	done <-chan error // the agent has ended by itself
}

// start runs the agent in this process; an agent that ends by itself is
// started again, as an init system would.
func (d *device) start(files *durable.FS) *runner {
	d.view.restarted()
	ctx, cancel := context.WithCancel(context.Background())
	done, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		for range 10 {
			a, err := agent.New(d.config(files))
			if err == nil {
				err = a.Run(ctx)
			}
			if ctx.Err() != nil {
				return
			}
			_, _ = fmt.Fprintf(d.output, "the agent ended: %v\n", err)
		}
		done <- errors.New("the agent does not start")
	}()
	return &runner{done: done, stop: func() error {
		cancel()
		<-ended
		d.view.quiet()
		return nil
	}}
}

// launch runs a program as the agent, in a process of its own. signalled says
// whether it was killed from inside.
func (d *device) launch(env []string, argv ...string) *runner {
	d.view.restarted()
	argv = append(argv, "--state", d.dir, "--log-level", "debug")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "KERNEX_BROKER=" + d.server.broker.URL, "KERNEX_ENROLL_TOKEN=" + claimToken, "KERNEX_SERIAL=" + d.serial}, env...)
	cmd.Stderr, cmd.WaitDelay = d.output, 2*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	done := make(chan error, 1)
	if err := cmd.Start(); err != nil {
		done <- err
		return &runner{stop: func() error { return nil }, done: done}
	}
	ended := make(chan struct{})
	var exit error
	go func() {
		exit = cmd.Wait()
		if err := exit; err == nil {
			done <- errors.New("exit status 0")
		} else {
			done <- err
		}
		close(ended)
	}()
	return &runner{done: done, stop: func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		timer := time.NewTimer(20 * time.Second)
		defer timer.Stop()
		select {
		case <-ended:
		case <-timer.C:
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
		d.view.quiet()
		return exit
	}}
}

// settle waits until every command has its result and the state report says
// what is true; early is the error with which the agent ended by itself before.
func (d *device) settle(p *runner) (early, err error) {
	deadline := time.NewTimer(d.waits)
	defer deadline.Stop()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	for {
		d.view.mu.Lock()
		changed, missing := d.view.changed, d.unsettled()
		d.view.mu.Unlock()
		if missing == "" {
			d.serving()
			return nil, nil
		}
		select {
		case <-changed:
		case <-poll.C:
		case early := <-p.done:
			return early, nil
		case <-deadline.C:
			return nil, fmt.Errorf("I6: after %s %s", d.waits, missing)
		}
	}
}

// serving waits a little until the current release's program has begun to work:
// a program that is stopped while it starts may take all of its stop timeout.
func (d *device) serving() {
	if d.current() == "" {
		return
	}
	version := map[string]string{d.old.Release: d.old.Version, d.good.Release: d.good.Version}[d.current()]
	deadline := time.Now().Add(time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for time.Now().Before(deadline) {
		if text, _ := os.ReadFile(filepath.Join(d.dir, "state", "serving")); strings.TrimSpace(string(text)) == version {
			return
		}
		<-tick.C
	}
}

// unsettled says what is missing. It is called with the view's lock.
func (d *device) unsettled() string {
	last := d.view.lastState()
	for _, c := range d.view.commands {
		if d.view.final(c.ID) == nil {
			return fmt.Sprintf("%s (%s, seq %d) has no result", c.ID, c.Type, c.Seq)
		}
		if last == nil || last.HighestSeq < c.Seq {
			return fmt.Sprintf("%s is not in the state report", c.ID)
		}
		if c.Configure != nil && d.view.final(c.ID).State == fleet.TargetSucceeded && last.ConfigVersion < c.Configure.Config.Version {
			return fmt.Sprintf("the state report has configuration %d, %s is %d", last.ConfigVersion, c.ID, c.Configure.Config.Version)
		}
	}
	if last == nil || !d.reborn() {
		return "there is no state report since the start"
	}
	for _, dir := range []string{"staging", "archives"} {
		if left, err := os.ReadDir(filepath.Join(d.dir, dir)); err != nil || len(left) > 0 {
			return fmt.Sprintf("%s holds %v, %v", dir, left, err)
		}
	}
	if current := d.current(); last.Release != current || last.LastCommandState == "accepted" {
		return fmt.Sprintf("the state report names release %s and command %s %s, current is %q", last.Release, last.LastCommand, last.LastCommandState, current)
	}
	return ""
}

// reborn reports whether the state was reported in this life.
func (d *device) reborn() bool {
	for _, e := range d.view.events[d.view.born:] {
		if e.state != nil {
			return true
		}
	}
	return false
}

func (d *device) current() string {
	target, _ := os.Readlink(filepath.Join(d.dir, "current"))
	return strings.TrimPrefix(target, "releases/")
}

// settled orders and waits, in the preparation of a test.
func (d *device) settled(t *testing.T, p *runner, order func()) {
	t.Helper()
	order()
	if early, err := d.settle(p); early != nil || err != nil {
		t.Fatalf("%v %v\n%s", early, err, d.output)
	}
}

// binaries are the programs under test, built once.
var binaries programs

type programs struct {
	once sync.Once
	dir  string
	err  error
}

func (p *programs) build() {
	p.once.Do(func() {
		if p.dir, p.err = os.MkdirTemp("", "kernex-crash-bin-"); p.err != nil {
			return
		}
		out, err := exec.Command("go", "build", "-o", p.dir+"/", "../cmd/kernex-agent", "./faultagent").CombinedOutput()
		if err != nil {
			p.err = fmt.Errorf("build the agents: %w\n%s", err, out)
		}
	})
	if p.err != nil {
		panic(p.err)
	}
}

func (p *programs) agent() string { p.build(); return filepath.Join(p.dir, "kernex-agent") }
func (p *programs) fault() string { p.build(); return filepath.Join(p.dir, "faultagent") }

// lines keeps the end of what an agent says.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buf.Len() > 256<<10 {
		l.buf.Next(128 << 10)
	}
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
}
