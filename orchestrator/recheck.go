package orchestrator

import (
	"context"
	"time"

	"github.com/kernexhq/kernex/orchestrator/postgres"
)

// recheckEvery bounds how long a connection outlives its credential when the
// notification of the change was lost.
const recheckEvery = 5 * time.Second

// kick ends connections whose credential changed; "" means that notifications
// may have been lost, and is left to the next recheck, which looks further back.
func (o *Orchestrator) kick(id string) {
	if id != "" {
		o.transport.Kick(id)
	}
}

// recheck ends connections whose grant does not hold any more. It looks at what
// changed since its last success, with a margin for transactions that were open
// then.
func (o *Orchestrator) recheck(ctx context.Context) error {
	tick := time.NewTicker(recheckEvery)
	defer tick.Stop()
	var since time.Time // the first look is at everything
	for {
		now, err := o.db.Now(ctx)
		var g postgres.Grants
		if err == nil {
			g, err = o.db.GrantsChanged(ctx, since)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			o.log.Warn().Err(err).Msg("recheck connections")
		default:
			o.transport.Recheck(g.Holds)
			since = now.Add(-time.Minute)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
