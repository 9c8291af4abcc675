package remote

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/kernexhq/kernex/pkg/mqttclient"
)

// Waits between attempts: full jitter, so that replicas and connections that
// lost the broker together do not come back together.
const (
	firstWait  = 250 * time.Millisecond
	maxWait    = 30 * time.Second
	stableLife = 10 * time.Second // a connection that lived so long starts the waits anew
)

// wait returns a random wait after n failures in a row.
func wait(n int) time.Duration {
	return time.Duration(rand.Int64N(int64(min(firstWait<<min(n, 10), maxWait)))) //nolint:gosec // jitter
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// keep keeps one connection up until ctx ends.
func (t *Transport) keep(ctx context.Context, s *slot, receive func(topic string, payload []byte)) {
	refused := false
	for failures := 0; ; {
		begin := time.Now()
		c, err := t.dial(ctx, s, refused, receive)
		if err == nil {
			s.client.Store(c)
			t.up(ctx, c)
			err = t.attend(ctx, c)
			s.client.Store(nil)
			t.metrics.gone(c)
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil { // its time was over
			failures = 0
			continue
		}
		if time.Since(begin) > stableLife {
			failures = 0
		}
		t.lastErr.Store(&err)
		var r *mqttclient.Refused
		refused = errors.As(err, &r) && r.BadCredential()
		t.metrics.failed(r != nil)
		d := wait(failures)
		failures++
		t.trouble.Warn().Err(err).Int("connections", t.Up()).Dur("again_in_ms", d).Msg("a connection to the broker failed; it is tried again")
		if !pause(ctx, d) {
			return
		}
	}
}

// dial logs in and subscribes.
func (t *Transport) dial(ctx context.Context, s *slot, refused bool, receive func(topic string, payload []byte)) (*mqttclient.Client, error) {
	username, password, err := t.cfg.Login(ctx, refused)
	if err != nil {
		return nil, err
	}
	c, err := mqttclient.Dial(ctx, mqttclient.Options{
		Broker: t.cfg.Broker, TLS: t.cfg.TLS, ClientID: s.id, Username: username, Password: password,
		KeepAlive: keepAlive, Queue: queueSize,
		OnMessage: func(topic string, payload []byte) {
			t.metrics.received.Inc()
			receive(topic, payload)
		},
	})
	if err != nil {
		return nil, err
	}
	for _, f := range t.filters {
		if t.quiet.Load() {
			break
		}
		op, cancel := context.WithTimeout(ctx, publishTimeout)
		err := c.Subscribe(op, f.name, f.qos)
		cancel()
		if err != nil {
			t.end(ctx, c)
			return nil, err
		}
	}
	return c, nil
}

// up notes a new connection.
func (t *Transport) up(ctx context.Context, c *mqttclient.Client) {
	t.metrics.connects.Inc()
	signal(t.ups)
	if n := t.Up(); n == 1 || n == len(t.slots) {
		t.cfg.Log.Info().Str("broker", t.cfg.Broker).Int("connections", n).Int("of", len(t.slots)).Msg("connected to the broker")
	}
	if t.quiet.Load() { // Quiesce came while it subscribed
		op, cancel := context.WithTimeout(ctx, closeTimeout)
		defer cancel()
		_ = t.unsubscribe(op, c) // else it has ended
	}
}

// attend waits for the end of a connection: its error, or nil when its time is
// over or ctx has ended, after a goodbye.
func (t *Transport) attend(ctx context.Context, c *mqttclient.Client) error {
	var over <-chan time.Time
	if t.cfg.Life > 0 {
		timer := time.NewTimer(t.cfg.Life/2 + time.Duration(rand.Int64N(int64(t.cfg.Life/2)))) //nolint:gosec // jitter
		defer timer.Stop()
		over = timer.C
	}
	select {
	case <-c.Done():
		err := c.Err()
		t.end(ctx, c)
		return err
	case <-over:
		op, cancel := context.WithTimeout(ctx, closeTimeout)
		_ = t.unsubscribe(op, c) // what is on its way still arrives
		cancel()
	case <-ctx.Done():
	}
	t.end(ctx, c)
	return nil
}

// end says goodbye and lets go of a connection.
func (t *Transport) end(ctx context.Context, c *mqttclient.Client) {
	op, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := c.Close(op); err != nil {
		t.trouble.Warn().Err(err).Msg("a connection to the broker did not end in time")
	}
}
