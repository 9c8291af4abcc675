package run

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/child"
)

// Waiting between restarts. A program that has run for steady counts as well
// again: the wait and the count of restarts start over.
const (
	firstWait = 200 * time.Millisecond
	maxWait   = 30 * time.Second
	steady    = time.Minute
)

// wordsBytes is how much of the program's last output stands in a status.
const wordsBytes = 4 << 10

// Service is a release's long-running program.
type Service struct {
	Program Program
	Policy  bundle.Run
	Log     string // path of its log file; rotated at 1 MiB, one older file kept
}

// Status is how the long-running program does.
type Status struct {
	Wanted   bool   // something should run
	Running  bool   // something does
	PID      int    // of the shim, in the agent's namespace
	Restarts int    // since it was last steady for a minute
	GaveUp   bool   // the policy allows no further start; it should run and does not
	Reason   string // how it last ended, in words; "" if it has not ended
	Output   string // the end of its output
}

// Supervisor keeps at most one Service running. Its methods may be called from
// any goroutine, Start and Stop one at a time.
type Supervisor struct {
	starter *Starter
	changed func()

	mu     sync.Mutex
	status Status

	cancel context.CancelFunc
	done   chan struct{}
}

// NewSupervisor returns a Supervisor that runs nothing. changed is called, from
// any goroutine, whenever the status changes.
func NewSupervisor(starter *Starter, changed func()) *Supervisor {
	return &Supervisor{starter: starter, changed: changed}
}

// Status returns how the program does.
func (s *Supervisor) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

func (s *Supervisor) set(change func(*Status)) {
	s.mu.Lock()
	change(&s.status)
	s.mu.Unlock()
	s.changed()
}

// Start stops what runs and starts svc. An error means that the first start
// failed; nothing runs then.
func (s *Supervisor) Start(svc Service) error {
	s.Stop()
	log, err := openLog(svc.Log, logBytes)
	if err != nil {
		return err
	}
	tail := newOutput(0, wordsBytes)
	proc, err := s.starter.start(svc.Program, io.MultiWriter(log, tail))
	if err != nil {
		_ = log.Close()
		return err
	}
	ctx, cancel := context.WithCancel(context.Background()) // ended by Stop
	s.cancel, s.done = cancel, make(chan struct{})
	s.set(func(st *Status) { *st = Status{Wanted: true, Running: true, PID: proc.PID()} })
	go func() {
		defer close(s.done)
		defer func() { _ = log.Close() }()
		s.keep(ctx, svc, proc, log, tail)
	}()
	return nil
}

// Stop ends the program as its policy says, SIGTERM then SIGKILL, and waits for
// its end. Stopping nothing does nothing.
func (s *Supervisor) Stop() {
	if s.cancel == nil {
		return
	}
	s.cancel()
	<-s.done
	s.cancel = nil
	s.set(func(st *Status) { *st = Status{} })
}

// keep restarts the program until ctx ends or the policy says no.
func (s *Supervisor) keep(ctx context.Context, svc Service, proc *child.Process, log io.Writer, tail *output) {
	wait, restarts := firstWait, 0
	for {
		begun := time.Now()
		select {
		case <-ctx.Done():
			proc.Stop(child.Step{Signal: syscall.SIGTERM, Wait: time.Duration(svc.Policy.StopTimeoutS) * time.Second})
			return
		case <-proc.Done():
		}
		words := exitWords(proc.Err())
		if time.Since(begun) > steady {
			wait, restarts = firstWait, 0
		}
		again := svc.Policy.Restart == bundle.RestartAlways || svc.Policy.Restart == bundle.RestartOnFailure && words != ""
		for {
			gaveUp := again && restarts >= svc.Policy.MaxRestarts || !again && words != ""
			s.ended(svc, words, tail.String(), restarts, again && !gaveUp, gaveUp)
			if !again || gaveUp || !pause(ctx, wait) {
				return
			}
			wait, restarts = min(2*wait, maxWait), restarts+1
			tail = newOutput(0, wordsBytes)
			next, err := s.starter.start(svc.Program, io.MultiWriter(log, tail))
			if err == nil {
				proc = next
				break
			}
			words = err.Error()
		}
		n := restarts
		s.set(func(st *Status) { st.Running, st.PID, st.Restarts = true, proc.PID(), n })
	}
}

// ended notes how the program ended and whether it will be started again.
func (s *Supervisor) ended(svc Service, words, output string, restarts int, again, gaveUp bool) {
	if words == "" {
		words = "exit status 0"
	}
	reason := fmt.Sprintf("%s: %s", strings.Join(svc.Program.Args, " "), words)
	if gaveUp && restarts > 0 {
		reason += fmt.Sprintf(", after %d restarts", restarts)
	}
	s.set(func(st *Status) {
		st.Running, st.PID, st.Restarts = false, 0, restarts
		st.Wanted = again || gaveUp
		st.GaveUp, st.Reason, st.Output = gaveUp, reason, output
	})
}

// pause waits for d; false means that ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
