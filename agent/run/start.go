package run

import (
	"errors"
	"fmt"
	"io"
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
}

// NewStarter returns a Starter whose shim is the command shim, to which
// Shim's arguments are appended; normally /proc/self/exe and ShimCommand.
func NewStarter(shim ...string) *Starter { return &Starter{shim: shim} }

// Namespaced reports whether programs get a PID namespace of their own. It
// finds out by trying, once.
func (s *Starter) Namespaced() bool {
	s.once.Do(func() {
		cmd := exec.Command("/proc/self/exe", "--version")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		if cmd.Start() != nil {
			return // not permitted
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: only whether it could start counts
		s.namespace = true
	})
	return s.namespace
}

// start starts p with its output, both streams, in out.
func (s *Starter) start(p Program, out io.Writer) (*child.Process, error) {
	if len(p.Args) == 0 {
		return nil, errors.New("start a program: no command")
	}
	privileged := "0"
	if p.Privileged {
		privileged = "1"
	}
	args := append(append([]string{}, s.shim[1:]...), privileged)
	cmd := exec.Command(s.shim[0], append(args, p.Args...)...)
	cmd.Dir = p.Dir
	cmd.Env = append([]string{"PATH=" + fixedPath}, p.Env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = pipeGrace
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if s.Namespaced() {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWPID
	}
	proc, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", strings.Join(p.Args, " "), err)
	}
	return proc, nil
}

// kill ends a program and all that it started, at once, and waits for it.
func kill(p *child.Process) { p.Stop(child.Step{Signal: syscall.SIGKILL, Wait: 0}) }

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
