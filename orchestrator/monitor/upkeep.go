package monitor

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Upkeep keeps tables small.
type Upkeep interface {
	EnsurePartitions(ctx context.Context, ahead int) error
	DropPartitions(ctx context.Context, keep time.Duration) (int, error)
	Purge(ctx context.Context, keepEvents time.Duration) (int64, error)
}

// partitionsAhead is how many days may pass without upkeep before samples land
// in the default partition.
const partitionsAhead = 3

// clearAtStart is how far back the first upkeep looks for ended deployments
// whose topics should be gone.
const clearAtStart = 7 * 24 * time.Hour

// upkeep makes and drops partitions, purges what is too old and clears the
// topics of deployments that ended a day ago. One part that fails does not keep
// the others from their work.
func (m *Monitor) upkeep(ctx context.Context) error {
	if m.generation == 0 {
		return nil
	}
	var errs []error
	if err := m.cfg.Store.EnsurePartitions(ctx, partitionsAhead); err != nil {
		errs = append(errs, fmt.Errorf("make partitions: %w", err))
	}
	if n, err := m.cfg.Store.DropPartitions(ctx, m.cfg.KeepBeats); err != nil {
		errs = append(errs, fmt.Errorf("drop partitions: %w", err))
	} else if n > 0 {
		m.cfg.Log.Info().Int("days", n).Msg("dropped old heartbeats and log lines")
	}
	if _, err := m.cfg.Store.Purge(ctx, m.cfg.KeepEvents); err != nil {
		errs = append(errs, fmt.Errorf("purge: %w", err))
	}
	errs = append(errs, m.clear(ctx))
	return errors.Join(errs...)
}

// clear removes the retained topics of deployments that ended deploymentKeep
// ago, since it last looked.
func (m *Monitor) clear(ctx context.Context) error {
	now := time.Now()
	back := clearAtStart
	if !m.cleared.IsZero() {
		back = deploymentKeep + now.Sub(m.cleared) + time.Minute
	}
	ids, err := m.cfg.Store.EndedDeployments(ctx, back, deploymentKeep)
	if err != nil {
		return fmt.Errorf("read ended deployments: %w", err)
	}
	for _, id := range ids {
		if err := m.cfg.Publisher.Publish(ctx, m.cfg.Topics.FleetDeployment(id), nil, 1, true); err != nil {
			return fmt.Errorf("clear the topic of deployment %s: %w", id, err)
		}
	}
	m.cleared = now
	return nil
}
