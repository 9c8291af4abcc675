package update

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// apply runs the deploy script and switches. From its first record on the
// device counts as changed.
func (m *Machine) apply(ctx context.Context, r Record) error {
	id := r.Command.Deploy.Bundle.Release
	manifest, err := m.sound(r, id)
	if err != nil {
		m.parts.Log.Warn().Err(err).Str("release", id).Msg("an extracted release is not whole and will be fetched again")
		m.fresh = ""
		return m.move(&r, Accepted, nil)
	}
	if err := m.mend(); err != nil {
		m.parts.Log.Error().Err(err).Msg("current could not be set right")
	}
	previous, err := m.parts.Releases.Current()
	if err != nil {
		return m.finish(r, Failed, err)
	}
	release := m.release(r, id, manifest)
	if err := m.move(&r, Applying, func(r *Record) { r.Previous, r.Deploys = previous, r.Deploys+1 }); err != nil {
		return err
	}
	out := m.parts.Programs.Deploy(ctx, release, scriptLimit(r, manifest.Deploy.TimeoutS))
	r.Output = out.Output
	switch {
	case ctx.Err() != nil:
		return nil // stopping: nobody will know how far it came
	case out.Later && r.Deploys < maxDeploys:
		m.pause = m.options.Pause << (r.Deploys - 1)
		return m.move(&r, Extracted, func(n *Record) { n.Output = out.Output })
	case out.Err != nil:
		return m.back(r, out)
	}
	m.parts.Programs.Stop()
	if err := m.parts.Releases.Switch(id); err != nil {
		return m.back(r, Outcome{Err: err, Output: out.Output})
	}
	return m.move(&r, Switched, func(n *Record) { n.Output = out.Output })
}

// sound returns the manifest of a release all of whose files are as they
// should be: written by this process, or hashed again.
func (m *Machine) sound(r Record, id string) (*bundle.Manifest, error) {
	if m.fresh == id {
		return m.parts.Releases.Manifest(id)
	}
	info, err := m.parts.Releases.Whole(id)
	if err != nil {
		return nil, err
	}
	return info.Manifest, m.admit(r, info)
}

// scriptLimit is the manifest's, at most the device's own.
func scriptLimit(r Record, manifest int) time.Duration {
	limit := stepLimit(r)
	if manifest > 0 {
		limit = min(limit, time.Duration(manifest)*time.Second)
	}
	return limit
}

// check starts the new program and waits for its health.
func (m *Machine) check(ctx context.Context, r Record) error {
	id := r.Command.Deploy.Bundle.Release
	manifest, err := m.parts.Releases.Manifest(id)
	if err == nil {
		var current string
		if current, err = m.parts.Releases.Current(); err == nil && current != id {
			err = fleet.Errorf(fleet.CodeInternal, "current is %q after the switch to %s", current, id)
		}
	}
	if err != nil {
		return m.back(r, Outcome{Err: err})
	}
	if err := m.move(&r, Health, func(n *Record) { n.Checks++ }); err != nil {
		return err
	}
	release := m.release(r, id, manifest)
	begun := time.Now()
	if err := m.parts.Programs.Start(release); err != nil {
		return m.back(r, Outcome{Err: fleet.Errorf(fleet.CodeHealth, "start the program: %v", err)})
	}
	out := m.parts.Programs.Health(ctx, release)
	if out.Err == nil && manifest.Health != nil && manifest.Health.NeedsNetwork {
		out.Err = m.reached(ctx, r, begun, time.Duration(manifest.Health.WindowS)*time.Second)
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case out.Err != nil:
		return m.back(r, out)
	}
	return m.finish(r, Committed, nil)
}

// reached is whether the new release leaves the device connected: the broker has
// to answer once within the health window.
func (m *Machine) reached(ctx context.Context, r Record, begun time.Time, window time.Duration) error {
	m.parts.Reporter.Progress(m.progress(r)) // something to answer
	ctx, cancel := context.WithDeadline(ctx, begun.Add(window))
	defer cancel()
	if err := m.parts.Reporter.Reached(ctx, begun); err != nil {
		return fleet.Errorf(fleet.CodeHealth, "health check: it holds, but the broker was not reached within %s", window)
	}
	return nil
}

// back notes why the device must return, with the output of what failed.
func (m *Machine) back(r Record, out Outcome) error {
	return m.move(&r, RollingBack, func(n *Record) {
		n.Cause, n.Output = detail(out.Err), joinOutput(r.Output, out.Output)
	})
}

func joinOutput(a, b string) string {
	a, b = strings.TrimSpace(a), strings.TrimSpace(b)
	switch {
	case a == b || b == "":
		b = a
	case a != "":
		b = a + "\n" + b
	}
	return protocol.TrimText(b, protocol.MaxOutput)
}

// goBack returns the device to the release before. It is repeated until it
// worked, a bounded number of times.
func (m *Machine) goBack(ctx context.Context, r Record) error {
	cause := r.Cause
	if cause == nil {
		cause = &protocol.ErrorDetail{Code: fleet.CodeInterrupted, Message: "the agent stopped in state " + string(r.State) + "; how far the deployment came is not known"}
	}
	if err := m.move(&r, RollingBack, func(n *Record) { n.Cause, n.Returns = cause, n.Returns+1 }); err != nil {
		return err
	}
	m.parts.Programs.Stop()
	out := m.undo(ctx, r)
	if ctx.Err() != nil {
		return nil
	}
	if out.Err != nil && r.Returns < maxReturns {
		m.parts.Log.Warn().Err(out.Err).Int("attempt", r.Returns).Msg("returning to the previous release failed")
		m.pause = m.options.Pause
		return nil // still ROLLING_BACK
	}
	// Also after the last failure: the old files with a doubtful environment
	// serve better than the new ones.
	err := m.parts.Releases.Switch(r.Previous)
	if err == nil {
		err = m.startCurrent()
	}
	if err == nil {
		err = out.Err
	}
	switch {
	case err != nil && r.Returns < maxReturns:
		m.parts.Log.Warn().Err(err).Int("attempt", r.Returns).Msg("returning to the previous release failed")
		m.pause = m.options.Pause
		return nil
	case err != nil:
		return m.finish(r, Inconsistent, fleet.Errorf(fleet.CodeInconsistent, "could not return to the previous release: %s; it returned because: %s", words(err), cause.Message))
	}
	return m.finish(r, RolledBack, nil)
}

// giveUp ends a return that was interrupted too often, by crashes. The old
// files with a doubtful environment still serve better than the new ones.
func (m *Machine) giveUp(r Record) error {
	cause := "no cause on record"
	if r.Cause != nil {
		cause = r.Cause.Message
	}
	m.parts.Programs.Stop()
	err := m.parts.Releases.Switch(r.Previous)
	if err == nil {
		err = m.startCurrent()
	}
	if err != nil {
		m.parts.Log.Error().Err(err).Msg("the previous release could not be started")
	}
	return m.finish(r, Inconsistent, fleet.Errorf(fleet.CodeInconsistent, "could not return to the previous release in %d attempts; it returned because: %s", maxReturns, cause))
}

// undo runs what takes the deploy script back: the release's own rollback
// script, else the deploy script of the release returned to.
func (m *Machine) undo(ctx context.Context, r Record) Outcome {
	id := r.Command.Deploy.Bundle.Release
	manifest, err := m.parts.Releases.Manifest(id)
	if err == nil && manifest.Rollback != nil {
		return m.parts.Programs.Rollback(ctx, m.release(r, id, manifest), scriptLimit(r, manifest.Rollback.TimeoutS))
	}
	if r.Previous == "" {
		return Outcome{}
	}
	old, err := m.parts.Releases.Manifest(r.Previous)
	if err != nil {
		return Outcome{Err: err}
	}
	release := Release{ID: r.Previous, Manifest: old, Deployment: r.Command.Deploy.Deployment, Previous: r.Command.Deploy.Bundle.Version}
	return m.parts.Programs.Deploy(ctx, release, scriptLimit(r, old.Deploy.TimeoutS))
}

// finish ends the record: its outcome, what it means for the device and the
// result for the orchestrator are one journal write.
func (m *Machine) finish(r Record, end State, cause error) error {
	ref := r.Command.Deploy.Bundle
	result := protocol.Result{Command: r.Command.ID, Attempt: max(r.Deploys, 1), State: end.row().report, Step: string(r.State), Output: protocol.TrimText(r.Output, protocol.MaxOutput)}
	switch code := fleet.ErrorCode(cause); {
	case cause == nil && end == RolledBack:
		result.Error = m.returned(r)
	case code == fleet.CodeCancelled || code == fleet.CodeSuperseded:
		result.State, result.Error = fleet.TargetCancelled, detail(cause)
	case cause != nil:
		result.Error = detail(cause)
	}
	result.DurationMS = m.elapsed(r).Milliseconds()
	var manifest *bundle.Manifest
	if end == Committed {
		var err error
		if manifest, err = m.parts.Releases.Manifest(ref.Release); err != nil {
			return err
		}
	}
	m.mu.Lock()
	err := m.ledger.change(func(b *Book) error {
		b.Op = nil
		b.Cancelled = slices.DeleteFunc(b.Cancelled, func(id string) bool { return id == r.Command.ID })
		switch end {
		case Committed:
			b.commit(r, manifest)
		case RolledBack:
			b.Broken = ""
		case Inconsistent:
			b.Broken = words(cause)
		}
		b.end(r.Command.Seq, result)
		return nil
	})
	m.stop, m.running = nil, ""
	m.mu.Unlock()
	if err != nil {
		return err
	}
	m.parts.Log.Info().Str("command", r.Command.ID).Str("bundle", ref.Name).Str("version", ref.Version).
		Str("state", string(result.State)).Interface("error", result.Error).Msg("command ended")
	m.parts.Reporter.Changed()
	m.owed = slices.DeleteFunc(m.owed, func(c chore) bool { // the end of a change has started what should run
		return c.name == tidying || end != Failed
	})
	m.chore(tidying, m.tidy)
	return nil
}

// elapsed is how long the command took. When the agent was started again in
// between only the wall clock can tell, and one that has jumped is not believed.
func (m *Machine) elapsed(r Record) time.Duration {
	m.mu.Lock()
	taken, ok := m.taken[r.Command.ID]
	delete(m.taken, r.Command.ID)
	m.mu.Unlock()
	if ok {
		return time.Since(taken)
	}
	now, _ := m.parts.Reporter.Now()
	d := now.Sub(time.UnixMilli(r.Begun))
	if d < 0 || d > longest {
		return 0
	}
	return d
}

// longest is more than any command takes: the orchestrator's limit for a step is
// a day, and a command has four of them.
const longest = 7 * 24 * time.Hour

// returned says from where, to where and why a device went back.
func (m *Machine) returned(r Record) *protocol.ErrorDetail {
	to := "no release"
	if r.Previous != "" {
		to = "release " + r.Previous
		if old, err := m.parts.Releases.Manifest(r.Previous); err == nil {
			to = old.Version
		}
	}
	text := fmt.Sprintf("back from %s to %s: %s", r.Command.Deploy.Bundle.Version, to, r.Cause.Message)
	return &protocol.ErrorDetail{Code: r.Cause.Code, Message: protocol.TrimText(text, maxWords)}
}

// commit makes the record's release the active one.
func (b *Book) commit(r Record, mf *bundle.Manifest) {
	ref := r.Command.Deploy.Bundle
	previous := b.Active.Version
	if b.Active.Release == ref.Release {
		previous = b.Active.Previous
	}
	b.Active = Active{Release: ref.Release, Name: mf.Name, Version: mf.Version, Counter: mf.Counter, Deployment: r.Command.Deploy.Deployment, Previous: previous}
	b.Kept = append([]string{ref.Release}, slices.DeleteFunc(b.Kept, func(id string) bool { return id == ref.Release })...)
	b.Kept = b.Kept[:min(len(b.Kept), 32)]
	if mf.MinCounter > b.Floors[mf.Name] {
		b.Floors[mf.Name] = mf.MinCounter
	}
	b.Broken = ""
}
