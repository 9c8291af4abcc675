// Package monitor publishes what everyone may watch: numbered events in order,
// and the state of devices, deployments and the fleet on retained topics. One
// replica does it, by a lease whose generation fences the one before.
package monitor

import (
	"context"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// EventStore numbers events and remembers which were published.
type EventStore interface {
	NumberEvents(ctx context.Context, generation int64, limit int) (int, error)
	EventsAfter(ctx context.Context, after int64, scope, selector fleet.Selector, limit int) (events []fleet.Event, upTo int64, err error)
	PublishedEvents(ctx context.Context) (int64, error)
	SetPublishedEvents(ctx context.Context, generation, number int64) error
}

// FleetStore reads what monitoring tools see.
type FleetStore interface {
	FleetDevices(ctx context.Context, ids []string) ([]protocol.FleetDevice, error)
	FleetDevicesAfter(ctx context.Context, after string, limit int) ([]protocol.FleetDevice, error)
	FleetDeployments(ctx context.Context, ids []string) ([]protocol.FleetDeployment, error)
	OpenDeployments(ctx context.Context, keep time.Duration) ([]protocol.FleetDeployment, error)
	EndedDeployments(ctx context.Context, from, to time.Duration) ([]string, error)
}

// KeepStore holds the lease, the totals and the housekeeping.
type KeepStore interface {
	AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (generation int64, ok bool, err error)
	ReleaseLease(ctx context.Context, name, holder string) error
	FleetSummary(ctx context.Context) (protocol.FleetSummary, error)
}

// Store is what the monitor reads and writes.
type Store interface {
	EventStore
	FleetStore
	KeepStore
	Upkeep
}

// Publisher sends to the fleet topics.
type Publisher interface {
	Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error
}

// Config says how to build a Monitor. Zero durations mean the default.
type Config struct {
	Topics    protocol.Topics
	Store     Store
	Publisher Publisher
	Fleet     string          // name of the installation, in every event's source
	Holder    string          // this replica, unlike every other one
	Wake      <-chan struct{} // events may be waiting
	// Connected gets a value when the broker may have lost what it retained;
	// nil where the broker lives as long as this process.
	Connected <-chan struct{}
	Log       zerolog.Logger

	Lease        time.Duration // 15 s; renewed after a third of it
	TimeEvery    time.Duration // the clock's topic; 30 s
	SummaryEvery time.Duration // totals, if anything happened; 5 s
	SettleEvery  time.Duration // a changed deployment's topic, at most; 1 s
	UpkeepEvery  time.Duration // partitions, purges, cleared topics; 10 min
	KeepBeats    time.Duration // heartbeat samples; 7 days
	KeepEvents   time.Duration // 30 days
}

// leaseName is that of postgres.LeaseEvents: numbering is what the lease fences.
const leaseName = "events"

// deploymentKeep is how long an ended deployment's topic stays.
const deploymentKeep = 24 * time.Hour

// Monitor is the loop.
type Monitor struct {
	cfg        Config
	generation int64 // 0: another replica has the lease
	renewed    time.Time
	published  int64
	devices    map[string]bool // changed since they were last published
	deploys    map[string]bool
	eventful   bool      // something happened since the last summary
	walk       *string   // the last device of a refresh in progress
	cleared    time.Time // when ended deployments were last looked for
}

// New makes a Monitor; Run makes it work.
func New(cfg Config) *Monitor {
	for _, d := range []struct {
		v    *time.Duration
		dflt time.Duration
	}{
		{&cfg.Lease, 15 * time.Second},
		{&cfg.TimeEvery, 30 * time.Second},
		{&cfg.SummaryEvery, 5 * time.Second},
		{&cfg.SettleEvery, time.Second},
		{&cfg.UpkeepEvery, 10 * time.Minute},
		{&cfg.KeepBeats, 7 * 24 * time.Hour},
		{&cfg.KeepEvents, 30 * 24 * time.Hour},
	} {
		if *d.v == 0 {
			*d.v = d.dflt
		}
	}
	return &Monitor{cfg: cfg, devices: map[string]bool{}, deploys: map[string]bool{}}
}

// Run publishes until ctx ends, then gives the lease up.
func (m *Monitor) Run(ctx context.Context) error {
	lease, clock := time.NewTicker(m.cfg.Lease/3), time.NewTicker(m.cfg.TimeEvery)
	summary, settle, upkeep := time.NewTicker(m.cfg.SummaryEvery), time.NewTicker(m.cfg.SettleEvery), time.NewTicker(m.cfg.UpkeepEvery)
	for _, t := range []*time.Ticker{lease, clock, summary, settle, upkeep} {
		defer t.Stop()
	}
	defer m.release(ctx)
	m.do(ctx, "acquire the lease", m.acquire)
	for {
		what, f := "publish events", m.events
		select {
		case <-ctx.Done():
			return nil
		case <-m.cfg.Wake:
		case <-m.cfg.Connected:
			what, f = "publish retained topics", m.refresh
		case <-lease.C:
			what, f = "acquire the lease", m.acquire
		case <-clock.C:
			what, f = "publish the time", m.time
		case <-summary.C:
			what, f = "publish the summary", m.summary
		case <-settle.C:
			what, f = "publish changes", m.changes
		case <-upkeep.C:
			what, f = "housekeeping", m.upkeep
		}
		m.do(ctx, what, f)
	}
}

// do runs one step; an error costs time only, the next tick tries again.
func (m *Monitor) do(ctx context.Context, what string, f func(ctx context.Context) error) {
	if err := f(ctx); err != nil && ctx.Err() == nil {
		m.cfg.Log.Error().Err(err).Msg(what)
	}
}

// acquire takes or renews the lease. Whoever gets it anew publishes everything
// retained: the broker may have started empty.
func (m *Monitor) acquire(ctx context.Context) error {
	g, ok, err := m.cfg.Store.AcquireLease(ctx, leaseName, m.cfg.Holder, m.cfg.Lease)
	if err != nil || !ok {
		m.generation = 0
		return err
	}
	m.renewed = time.Now()
	if g == m.generation {
		return nil
	}
	if m.published, err = m.cfg.Store.PublishedEvents(ctx); err != nil {
		return fmt.Errorf("read the published events: %w", err)
	}
	m.generation = g
	m.do(ctx, "housekeeping", m.upkeep)
	if err := m.refresh(ctx); err != nil {
		return err
	}
	return m.events(ctx)
}

// renew keeps the lease while a long list is published: to a broker far away, a
// batch may take longer than the lease and would begin again for ever.
func (m *Monitor) renew(ctx context.Context) error {
	if time.Since(m.renewed) < m.cfg.Lease/3 {
		return nil
	}
	g, ok, err := m.cfg.Store.AcquireLease(ctx, leaseName, m.cfg.Holder, m.cfg.Lease)
	if err != nil {
		return err
	}
	if !ok || g != m.generation {
		m.generation = 0
		return fleet.Errorf(fleet.CodeConflict, "another replica has the lease")
	}
	m.renewed = time.Now()
	return nil
}

func (m *Monitor) release(ctx context.Context) {
	if m.generation == 0 {
		return
	}
	op, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := m.cfg.Store.ReleaseLease(op, leaseName, m.cfg.Holder); err != nil {
		m.cfg.Log.Debug().Err(err).Msg("release the lease; it ends by itself")
	}
}
