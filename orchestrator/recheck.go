package orchestrator

import (
	"context"
	"time"

	"github.com/kernexhq/kernex/orchestrator/postgres"
)

// recheckEvery bounds how long a connection outlives its credential when the
// notification of the change was lost.
const recheckEvery = 5 * time.Second

// wholeEvery is how often every device is looked at and not only those that
// changed: one that was deleted has left no row to tell of it.
const wholeEvery = time.Minute

// kick ends connections whose credential changed; "" means that notifications
// may have been lost: the next recheck looks at everything.
func (o *Orchestrator) kick(id string) {
	if id == "" {
		o.lookAtAll.Store(true)
		return
	}
	o.transport.Kick(id)
}

// recheck ends connections whose grant does not hold any more. It looks at what
// changed since its last success, with a margin for transactions that were open
// then.
func (o *Orchestrator) recheck(ctx context.Context) error {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	var since, whole time.Time // the first look is at everything
	for {
		if o.lookAtAll.Swap(false) || time.Since(whole) >= wholeEvery {
			since = time.Time{}
		}
		now, err := o.db.Now(ctx)
		var g postgres.Grants
		if err == nil {
			g, err = o.db.GrantsChanged(ctx, since)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			o.own.Warn().Err(err).Msg("recheck connections")
		default:
			o.transport.Recheck(g.Holds)
			if g.Whole {
				whole = time.Now()
			}
			since = now.Add(-time.Minute)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
