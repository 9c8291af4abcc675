package update

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

const (
	progressEvery = 10 * time.Second // between progress reports of one download
	firstAsk      = 10 * time.Second // before a fresh URL is asked for again
	maxAsk        = 5 * time.Minute
	defaultStep   = 300 // seconds; what a step may take when the command does not say
)

// stepLimit is how long one step of the command may take.
func stepLimit(r Record) time.Duration {
	s := r.Command.Deploy.StepTimeoutS
	if s <= 0 {
		s = defaultStep
	}
	return time.Duration(s) * time.Second
}

// fetch gets the release onto the disk: it is there already, or it is
// downloaded and verified.
func (m *Machine) fetch(ctx context.Context, r Record) error {
	ref := r.Command.Deploy.Bundle
	if r.State == Accepted {
		if done, err := m.already(ctx, r); done || err != nil || ctx.Err() != nil {
			return err
		}
		info, err := m.parts.Releases.Whole(ref.Release)
		if err == nil {
			if err := m.admit(r, info); err != nil {
				return m.finish(r, Failed, err)
			}
			m.fresh = ref.Release
			return m.move(&r, Extracted, nil)
		}
		if fleet.ErrorCode(err) != fleet.CodeNotFound {
			m.parts.Log.Warn().Err(err).Str("release", ref.Release).Msg("a release on disk is damaged and will be fetched again")
		}
		if err := m.move(&r, Downloading, nil); err != nil {
			return err
		}
	}
	if err := m.download(ctx, r); err != nil {
		if ctx.Err() != nil {
			return nil // cancelled or stopping; the state decides
		}
		return m.finish(r, Failed, err)
	}
	info, err := m.parts.Archives.Verify(ctx, ref)
	if err == nil {
		err = m.admit(r, info)
	}
	if err != nil {
		return m.spoiled(ctx, r, err)
	}
	return m.move(&r, Verified, nil)
}

// already ends a command for the release that runs and is healthy: the common
// repeat of a deployment costs no restart.
func (m *Machine) already(ctx context.Context, r Record) (bool, error) {
	id := r.Command.Deploy.Bundle.Release
	current, err := m.parts.Releases.Current()
	m.mu.Lock()
	active, broken := m.ledger.book.Active.Release, m.ledger.book.Broken
	m.mu.Unlock()
	if err != nil || current != id || active != id || broken != "" {
		return false, nil
	}
	manifest, err := m.parts.Releases.Manifest(id)
	if err != nil {
		return false, nil // damaged: the long way replaces it
	}
	if out := m.parts.Programs.Health(ctx, m.release(r, id, manifest)); out.Err != nil {
		return false, nil
	}
	return true, m.finish(r, Committed, nil)
}

// download has an overall limit: the orchestrator waits 4 steps and an hour for
// the whole command.
func (m *Machine) download(ctx context.Context, r Record) error {
	limit := 3*stepLimit(r) + time.Hour
	within, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	last := time.Now()
	progress := func(bytes int64) {
		if time.Since(last) < progressEvery {
			return
		}
		last = time.Now()
		p := m.progress(r)
		p.Bytes = bytes
		m.parts.Reporter.Progress(p)
	}
	renew := func(ctx context.Context) (protocol.BundleRef, error) { return m.renew(ctx, r.Command.ID) }
	d := r.Command.Deploy
	err := m.parts.Fetcher.Fetch(within, d.Bundle, d.MaxRate, renew, progress)
	if err != nil && within.Err() != nil && ctx.Err() == nil && fleet.ErrorCode(err) != fleet.CodeURLRefused {
		return fleet.Errorf(fleet.CodeTimeout, "the download took longer than %s: %s", limit, words(err))
	}
	return err
}

// renew asks the orchestrator for a fresh URL until the command has come again
// with one.
func (m *Machine) renew(ctx context.Context, id string) (protocol.BundleRef, error) {
	select {
	case <-m.renewed: // of an earlier time
	default:
	}
	for wait := firstAsk; ; wait = min(2*wait, maxAsk) {
		m.parts.Reporter.Request(protocol.Request{Want: protocol.WantURL, Command: id})
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return protocol.BundleRef{}, fmt.Errorf("wait for a fresh URL: %w", ctx.Err())
		case <-timer.C:
			continue
		case <-m.renewed:
			timer.Stop()
		}
		m.mu.Lock()
		op := m.ledger.book.Op
		m.mu.Unlock()
		if op == nil || op.Command.ID != id {
			return protocol.BundleRef{}, errors.New("the command is gone")
		}
		return op.Command.Deploy.Bundle, nil
	}
}

// unpack extracts the archive, verifying it on the way.
func (m *Machine) unpack(ctx context.Context, r Record) error {
	info, err := m.parts.Archives.Extract(ctx, r.Command.Deploy.Bundle)
	if err == nil {
		err = m.admit(r, info)
	}
	if err != nil {
		return m.spoiled(ctx, r, err)
	}
	m.fresh = info.Release
	return m.move(&r, Extracted, nil)
}

// spoiled ends a command whose archive may not be used and removes the archive,
// so that the next command starts from nothing.
func (m *Machine) spoiled(ctx context.Context, r Record, cause error) error {
	if ctx.Err() != nil {
		return nil
	}
	if err := m.parts.Archives.Discard(r.Command.Deploy.Bundle); err != nil {
		m.parts.Log.Warn().Err(err).Msg("a refused archive could not be removed")
	}
	return m.finish(r, Failed, cause)
}

// release is what programs see of the command's release.
func (m *Machine) release(r Record, id string, manifest *bundle.Manifest) Release {
	m.mu.Lock()
	defer m.mu.Unlock()
	active := m.ledger.book.Active
	previous := active.Version
	if active.Release == id {
		previous = active.Previous
	}
	return Release{ID: id, Manifest: manifest, Deployment: r.Command.Deploy.Deployment, Previous: previous}
}
