package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
)

const (
	pollEvery  = 500 * time.Millisecond // the answer is one row; the engine works in steps of this size
	lostAfter  = 2 * time.Minute        // without any answer: longer than a restart of everything takes
	fewDevices = 8                      // up to here each device has its own line
	mostLines  = 10                     // failed devices shown while it runs; the end shows all
)

// follow shows d until it ends, says how, and fails unless it succeeded.
// Neither Ctrl-C nor timeout (0 is none) cancels the deployment.
func (a *app) follow(ctx context.Context, api *client.Client, d fleet.Deployment, timeout time.Duration) error {
	watch, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if timeout > 0 {
		t := time.AfterFunc(timeout, func() { cancel(fmt.Errorf("no end after %s", timeout)) })
		defer t.Stop()
	}
	v := newView(a)
	d, failed, err := a.poll(watch, api, d, v)
	v.end()
	switch {
	case err != nil && watch.Err() != nil:
		why := "stopped watching"
		if ctx.Err() == nil {
			why = context.Cause(watch).Error()
		}
		a.complain(fmt.Errorf("%s: deployment %s goes on; watch it again with: kernex deployment get %s --watch", why, d.ID, d.ID))
		return errReported
	case err != nil && d.Status.Final():
		return fmt.Errorf("deployment %s is %s, but its devices cannot be listed: %w", d.ID, d.Status, err)
	case err != nil:
		return fmt.Errorf("deployment %s goes on, but cannot be watched: %w", d.ID, err)
	}
	return v.outcome(d, failed)
}

// poll asks until the deployment has ended, and returns it with the devices on
// which it did not succeed.
func (a *app) poll(ctx context.Context, api *client.Client, d fleet.Deployment, v *view) (fleet.Deployment, []fleet.Target, error) {
	answered := a.now()
	var shown []fleet.Target
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		next, targets, err := look(ctx, api, d, shown)
		switch {
		case err == nil:
			answered, d, shown = a.now(), next, targets
			v.show(d, targets, "")
		case ctx.Err() != nil:
			return d, nil, ctx.Err()
		case !passing(err) || a.now().Sub(answered) > lostAfter:
			return d, nil, err
		default:
			v.show(d, shown, explainShort(err)+"; still trying")
		}
		if err == nil && d.Status.Final() {
			failed, err := unsuccessful(ctx, api, d, 0)
			return d, failed, err
		}
		select {
		case <-ctx.Done():
			return d, nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// look reads the deployment and the devices that the view shows: all of a few,
// else those that failed, when there are more of them than before.
func look(ctx context.Context, api *client.Client, d fleet.Deployment, shown []fleet.Target) (fleet.Deployment, []fleet.Target, error) {
	next, err := api.Deployment(ctx, d.ID)
	if err != nil {
		return d, shown, err
	}
	if next.Total <= fewDevices {
		p, err := api.Targets(ctx, d.ID, "", 0)
		return next, p.Items, err
	}
	if len(shown) == mostLines || len(shown) == failedCount(next) {
		return next, shown, nil
	}
	shown, err = unsuccessful(ctx, api, next, mostLines)
	return next, shown, err
}

func failedCount(d fleet.Deployment) int {
	n := 0
	for s, k := range d.Progress {
		if s.Final() && s != fleet.TargetSucceeded {
			n += k
		}
	}
	return n
}

// unsuccessful lists the devices that ended otherwise; limit 0 is all of them.
func unsuccessful(ctx context.Context, api *client.Client, d fleet.Deployment, limit int) ([]fleet.Target, error) {
	var all []fleet.Target
	for _, s := range fleet.TargetStates {
		if !s.Final() || s == fleet.TargetSucceeded || d.Progress[s] == 0 {
			continue
		}
		want := 0
		if limit > 0 {
			if want = limit - len(all); want == 0 {
				break
			}
		}
		p, err := api.Targets(ctx, d.ID, s, want)
		if err != nil {
			return all, err
		}
		all = append(all, p.Items...)
	}
	return all, nil
}

// passing reports whether an error may be gone at the next try.
func passing(err error) bool {
	switch fleet.ErrorCode(err) {
	case fleet.CodeUnavailable, fleet.CodeRateLimited, fleet.CodeInternal:
		return true
	}
	return errors.Is(err, client.ErrUnreachable)
}

func explainShort(err error) string {
	var e *fleet.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}
