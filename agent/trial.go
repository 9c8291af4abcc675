package agent

import (
	"context"
	"sync"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// revertAfter is how long a device without a connection keeps a configuration
// that it has never connected with.
const revertAfter = 5 * time.Minute

// trial undoes a configuration that cuts the device off. A new configuration is
// on trial until a connection has been made with it, or has held for the whole
// time; the one before stays in device_config.json as long, so that a restart in
// between changes nothing but the time, which begins again: nobody knows how
// long the device was off. A network that is lost later undoes nothing.
type trial struct {
	*Agent
	after  time.Duration
	signal chan struct{}

	mu        sync.Mutex
	connected bool
	proved    bool      // connected since the change
	since     time.Time // of the change, of the connection or of its loss, whatever came last
}

func newTrial(a *Agent) *trial {
	after := a.cfg.RevertAfter
	if after == 0 {
		after = revertAfter
	}
	return &trial{Agent: a, after: after, signal: make(chan struct{}, 1), since: time.Now()}
}

func (t *trial) note(change func()) {
	t.mu.Lock()
	change()
	t.since = time.Now()
	t.mu.Unlock()
	select {
	case t.signal <- struct{}{}:
	default:
	}
}

// begin is called before a configuration is put into force: from here on a
// connection counts for it. Whoever has done that calls note.
func (t *trial) begin() { t.note(func() { t.proved = false }) }

func (t *trial) up()   { t.note(func() { t.connected, t.proved = true, true }) }
func (t *trial) down() { t.note(func() { t.connected = false }) }

// run decides about configurations on trial until ctx ends.
func (t *trial) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.signal:
		case <-timer.C:
		}
		timer.Reset(t.decide())
	}
}

// decide ends a trial that can be ended and returns when to look again.
func (t *trial) decide() time.Duration {
	if t.cache.get().Before == nil {
		return time.Hour // note wakes it
	}
	t.mu.Lock()
	connected, proved, left := t.connected, t.proved, time.Until(t.since.Add(t.after))
	t.mu.Unlock()
	if !proved && left > 0 {
		return left
	}
	if err := t.end(proved || connected); err != nil {
		t.log.Error().Err(err).Msg("the end of a configuration's trial could not be recorded")
		return t.after
	}
	return time.Hour
}

// end keeps the configuration on trial or goes back to the one before.
func (t *trial) end(keep bool) error {
	var back *fleet.Config
	var version int64
	err := t.cache.change(func(e *enrolled) error {
		back, e.Before = e.Before, nil
		if keep || back == nil {
			return nil
		}
		version = e.Config.Version
		e.Reported, e.Outcome, e.Error = version, reverted, "no connection for "+t.after.String()+" after the change"
		e.Config = *back
		return nil
	})
	if err != nil || keep || back == nil {
		return err
	}
	t.log.Warn().Int64("version", version).Int64("back_to", back.Version).Msg("configuration reverted: no connection with it")
	t.reports.wake()
	return t.adopt(*back)
}

// adopt makes the agent behave as c says.
func (a *Agent) adopt(c fleet.Config) error {
	if l := a.link.Load(); l != nil {
		l.SetHeartbeat(time.Duration(c.HeartbeatIntervalS) * time.Second)
	}
	return a.level.Set(c.LogLevel)
}
