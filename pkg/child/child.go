// Package child runs helper programs (Postgres, the object store) as children
// that cannot outlive this process: the kernel sends them a signal when their
// parent dies, however it dies.
package child

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Process is one running child. Its methods may be called from any goroutine.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // exit error; read only after done is closed
}

// Start runs cmd in its own process group (a Ctrl-C at a terminal must reach
// this program first, which then stops its children in order) and asks the
// kernel to send death to it when this process ends.
//
// PR_SET_PDEATHSIG fires when the *thread* that forked dies, not the process.
// The fork and the wait therefore share one goroutine that is locked to its
// thread, so that the thread lives exactly as long as the child.
func Start(cmd *exec.Cmd, death syscall.Signal) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = death
	cmd.SysProcAttr.Setpgid = true

	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return p, nil
}

// PID returns the child's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the child ended: nil for status 0, else an *exec.ExitError.
// It is nil as long as the child runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Signal sends sig to the child alone. A child that has ended is not an error.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %d: %w", sig, p.PID(), err)
	}
	return nil
}

// Step is one attempt at stopping a child: a signal and how long to wait for
// it to have an effect.
type Step struct {
	Signal syscall.Signal
	Wait   time.Duration
}

// Stop sends each step's signal in turn until the child has ended, and kills
// its whole process group when no step was enough. It returns after the child
// was reaped; stopping a child that has ended does nothing.
func (p *Process) Stop(steps ...Step) {
	for _, s := range steps {
		if p.Signal(s.Signal) != nil {
			break // cannot be signalled politely; the group kill below decides
		}
		timer := time.NewTimer(s.Wait)
		select {
		case <-p.done:
			timer.Stop()
			return
		case <-timer.C:
		}
	}
	select {
	case <-p.done: // the id may belong to somebody else by now
		return
	default:
	}
	if err := syscall.Kill(-p.PID(), syscall.SIGKILL); err != nil {
		_ = p.cmd.Process.Kill()
	}
	<-p.done
}
