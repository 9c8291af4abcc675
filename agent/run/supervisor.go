package run

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
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

// Log takes the program's output and what happens to it.
type Log interface {
	io.Writer
	Note(level, text string) // level is info or warn
}

// Service is a release's long-running program.
type Service struct {
	Program Program
	Policy  bundle.Run
	Log     Log
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
	again   chan struct{}

	mu     sync.Mutex
	status Status

	cancel context.CancelFunc
	done   chan struct{}
}

// NewSupervisor returns a Supervisor that runs nothing. changed is called, from
// any goroutine, whenever the status changes.
func NewSupervisor(starter *Starter, changed func()) *Supervisor {
	return &Supervisor{starter: starter, changed: changed, again: make(chan struct{}, 1)}
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
	select {
	case <-s.again: // meant for what ran before
	default:
	}
	k := &keeper{Supervisor: s, svc: svc}
	if err := k.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background()) // ended by Stop
	s.cancel, s.done = cancel, make(chan struct{})
	s.set(func(st *Status) { *st = Status{Wanted: true, Running: true, PID: k.proc.PID()} })
	go func() {
		defer close(s.done)
		k.keep(ctx)
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

// Restart makes the program start anew, also one that was given up or has
// ended; it does not wait for it. The error says that there is none.
func (s *Supervisor) Restart() error {
	s.mu.Lock()
	there := s.status != Status{}
	s.mu.Unlock()
	if !there {
		return fleet.Errorf(fleet.CodeConflict, "no program runs here that could be started again")
	}
	select {
	case s.again <- struct{}{}:
	default: // one is due already
	}
	return nil
}

// keeper is one service's life.
type keeper struct {
	*Supervisor
	svc      Service
	proc     *process
	tail     *output
	restarts int
	wait     time.Duration
}

func (k *keeper) name() string { return strings.Join(k.svc.Program.Args, " ") }

func (k *keeper) start() (err error) {
	k.tail = newOutput(0, wordsBytes)
	k.proc, err = k.starter.start(k.svc.Program, io.MultiWriter(k.svc.Log, k.tail))
	if err == nil {
		k.svc.Log.Note("info", "started "+k.name())
	}
	return err
}

// keep restarts the program until ctx ends. When the policy says no it waits
// for somebody to ask.
func (k *keeper) keep(ctx context.Context) {
	k.wait = firstWait
	for {
		begun := time.Now()
		var words string
		asked := false
		select {
		case <-ctx.Done():
			k.proc.stop(k.patience())
			k.svc.Log.Note("info", "stopped "+k.name())
			return
		case <-k.again:
			k.proc.stop(k.patience())
			asked, words = true, "restart asked for"
		case <-k.proc.Done():
			words = exitWords(k.proc.Err())
		}
		if asked || time.Since(begun) > steady {
			k.wait, k.restarts = firstWait, 0
		}
		if !k.next(ctx, words, asked) {
			return
		}
		k.set(func(st *Status) {
			st.Wanted, st.Running, st.GaveUp, st.PID, st.Restarts = true, true, false, k.proc.PID(), k.restarts
		})
	}
}

func (k *keeper) patience() time.Duration {
	return time.Duration(k.svc.Policy.StopTimeoutS) * time.Second
}

// next starts the program again after it has ended, when the policy or an
// operator wants it; false means that ctx has ended.
func (k *keeper) next(ctx context.Context, words string, asked bool) bool {
	for {
		again := asked || k.svc.Policy.Restart == bundle.RestartAlways || k.svc.Policy.Restart == bundle.RestartOnFailure && words != ""
		gaveUp := !asked && (again && k.restarts >= k.svc.Policy.MaxRestarts || !again && words != "")
		k.ended(words, again && !gaveUp, gaveUp)
		switch {
		case asked: // at once
		case again && !gaveUp:
			var ok bool
			if ok, asked = k.pause(ctx, k.wait); !ok {
				return false
			}
			k.wait, k.restarts = min(2*k.wait, maxWait), k.restarts+1
		default:
			select {
			case <-ctx.Done():
				return false
			case <-k.again:
				asked = true
			}
		}
		if asked {
			k.wait, k.restarts = firstWait, 0
		}
		err := k.start()
		if err == nil {
			return true
		}
		words, asked = err.Error(), false
	}
}

// ended notes how the program ended and whether it will be started again.
func (k *keeper) ended(words string, again, gaveUp bool) {
	if words == "" {
		words = "exit status 0"
	}
	reason := fmt.Sprintf("%s: %s", k.name(), words)
	if gaveUp && k.restarts > 0 {
		reason += fmt.Sprintf(", after %d restarts", k.restarts)
	}
	switch {
	case gaveUp:
		k.svc.Log.Note("warn", reason+"; it is not started again")
	default:
		k.svc.Log.Note("warn", reason)
	}
	k.set(func(st *Status) {
		st.Running, st.PID, st.Restarts = false, 0, k.restarts
		st.Wanted = again || gaveUp
		st.GaveUp, st.Reason, st.Output = gaveUp, reason, k.tail.String()
	})
}

// pause waits for d, or until a restart is asked for; ok is false when ctx ended
// first.
func (k *keeper) pause(ctx context.Context, d time.Duration) (ok, asked bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false, false
	case <-k.again:
		return true, true
	case <-t.C:
		return true, false
	}
}
