package run

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// ExitTryLater is the exit status (EX_TEMPFAIL of sysexits.h) by which a script
// says that nothing is wrong and that it wants to be called again later.
const ExitTryLater = 75

// Outcome is how a script ended.
type Outcome struct {
	Code     int    // exit status; -1: killed, or never started
	TimedOut bool   // it ran longer than its limit
	Reason   string // why it counts as failed, in words; "" for status 0
	Output   string // the first 64 KiB and the last 192 KiB of both streams
	Duration time.Duration
}

// Script runs p to its end, at most for limit. Whatever it started dies with
// it. When ctx ends the script is killed and ctx's error is the reason.
func (s *Starter) Script(ctx context.Context, p Program, limit time.Duration) Outcome {
	begun := time.Now()
	out := newOutput(headBytes, tailBytes)
	name := "script"
	if len(p.Args) > 0 {
		name = strings.TrimPrefix(p.Args[0], "./")
	}
	proc, err := s.start(p, out)
	if err != nil {
		return Outcome{Code: -1, Reason: err.Error()}
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var o Outcome
	select {
	case <-proc.Done():
	case <-timer.C:
		o.TimedOut = true
	case <-ctx.Done():
	}
	select {
	case <-proc.Done():
		o.TimedOut = false // it ended at the same moment
	default:
		proc.kill()
		o.Code = -1
	}
	switch {
	case o.TimedOut:
		o.Reason = fmt.Sprintf("%s: killed after its limit of %s", name, limit)
	case o.Code == -1:
		o.Reason = fmt.Sprintf("%s: killed: %v", name, context.Cause(ctx))
	default:
		o.Code = exitCode(proc.Err())
		if words := exitWords(proc.Err()); words != "" {
			o.Reason = name + ": " + words
		}
	}
	o.Output, o.Duration = out.String(), time.Since(begun)
	return o
}
