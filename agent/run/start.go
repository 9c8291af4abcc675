package run

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kernexhq/kernex/pkg/child"
)

// fixedPath is the PATH of every program of a bundle: the agent's own could
// name folders that others write to.
const fixedPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// pipeGrace bounds the wait for output after a program has ended: without a
// PID namespace a daemon that it left behind may hold the pipe open.
const pipeGrace = 2 * time.Second

// shimGrace is how long a shim without a namespace may take to kill what its
// program has started.
const shimGrace = 2 * time.Second

// Program is one start of a bundle's program.
type Program struct {
	Args       []string // program and arguments; ./x is relative to Dir
	Dir        string   // working directory: the release
	Env        []string // all of its environment but PATH
	Privileged bool     // may gain privileges (setuid programs)
}

// Starter starts programs. Its methods may be called from any goroutine.
type Starter struct {
	shim []string

	once      sync.Once
	namespace bool
	limit     *taskLimit // nil: the number of processes is not bounded
	why       error      // why not
}

// NewStarter returns a Starter whose shim is the command shim, to which
// Shim's arguments are appended; normally /proc/self/exe and ShimCommand.
func NewStarter(shim ...string) *Starter { return &Starter{shim: shim} }

// Namespaced reports whether programs get a PID namespace of their own. It
// finds out by trying, once.
func (s *Starter) Namespaced() bool {
	s.look()
	return s.namespace
}

// Bounded returns nil if the number of a program's processes is bounded, else
// why it is not.
func (s *Starter) Bounded() error {
	s.look()
	return s.why
}

// look finds out what this process may do, by trying.
func (s *Starter) look() {
	s.once.Do(func() {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		own, err2 := os.ReadFile("/proc/self/cgroup")
		if s.why = errors.Join(err, err2); s.why == nil {
			s.limit, s.why = findTaskLimit(string(mounts), string(own))
		}
		cmd := exec.Command("/proc/self/exe", "--version")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		if cmd.Start() != nil {
			return // not permitted
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: only whether it could start counts
		s.namespace = true
	})
}

// process is a program that was started, behind its shim.
type process struct {
	*child.Process
	namespaced bool
	lifeline   *os.File // the shim ends everything when it closes
	done       chan struct{}
}

// Done is closed when the program and all that it started have ended.
func (p *process) Done() <-chan struct{} { return p.done }

// start starts p with its output, both streams, in out.
func (s *Starter) start(p Program, out io.Writer) (*process, error) {
	if len(p.Args) == 0 {
		return nil, errors.New("start a program: no command")
	}
	s.look()
	privileged := "0"
	if p.Privileged {
		privileged = "1"
	}
	var g *group
	procs := noGroup
	if s.limit != nil {
		var err error
		if g, err = s.limit.make(); err != nil {
			return nil, fmt.Errorf("start %s: %w", strings.Join(p.Args, " "), err)
		}
		procs = g.procs()
	}
	remove := func() {
		if g != nil {
			g.remove()
		}
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		remove()
		return nil, fmt.Errorf("make a pipe to the shim: %w", err)
	}
	args := append(append([]string{}, s.shim[1:]...), privileged, procs)
	cmd := exec.Command(s.shim[0], append(args, p.Args...)...)
	cmd.Dir = p.Dir
	cmd.Env = append([]string{"PATH=" + fixedPath}, p.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{theirs} // descriptor 3
	cmd.WaitDelay = pipeGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	// Without a namespace the shim has to outlive the agent for a moment, to
	// kill what the program has started: the pipe tells it.
	var death syscall.Signal
	if s.namespace {
		cmd.SysProcAttr.Cloneflags, death = syscall.CLONE_NEWPID, syscall.SIGKILL
	}
	c, err := child.Start(cmd, death)
	_ = theirs.Close()
	if err != nil {
		_ = ours.Close()
		remove()
		return nil, fmt.Errorf("start %s: %w", strings.Join(p.Args, " "), err)
	}
	proc := &process{Process: c, namespaced: s.namespace, lifeline: ours, done: make(chan struct{})}
	go func() {
		<-c.Done()
		_ = ours.Close()
		remove()
		close(proc.done)
	}()
	return proc, nil
}

// kill ends a program and all that it started, at once, and waits for it.
func (p *process) kill() {
	_ = p.lifeline.Close() // closed already if it has just ended
	if !p.namespaced {
		p.await(shimGrace)
	}
	p.Stop()
	<-p.done
}

// stop asks the program to end and kills it if it does not within wait.
func (p *process) stop(wait time.Duration) {
	if p.Signal(syscall.SIGTERM) == nil {
		p.await(wait)
	}
	p.kill()
}

// await waits for the end, at most for d.
func (p *process) await(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
	}
}

// exitWords says how a program ended; "" for status 0.
func exitWords(err error) string {
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return ""
	case errors.As(err, &exit):
		code := exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return "killed by signal " + status.Signal().String()
		}
		if code > 128 && code < 128+65 {
			return "killed by signal " + syscall.Signal(code-128).String()
		}
		return fmt.Sprintf("exit status %d", code)
	}
	return err.Error()
}

// exitCode is the status a program ended with, -1 if it was killed or could
// not be waited for.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}
