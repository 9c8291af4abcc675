// Package dispatch takes open commands from Postgres to devices: it claims
// those that are due, presigns, signs and publishes them. A claim is a lease
// that ends by itself, so a command that is lost on the way, or with this
// process, is sent again.
package dispatch

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Store is where commands are.
type Store interface {
	ClaimCommands(ctx context.Context, limit int) ([]fleet.Command, error)
	ReturnCommands(ctx context.Context, claims []fleet.Command, after time.Duration) error
	NextSend(ctx context.Context) (wait time.Duration, ok bool, err error)
}

// Publisher sends commands to devices.
type Publisher interface {
	Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error
}

// Presigner makes a URL from which a device can fetch an object for a time.
type Presigner interface {
	Presign(ctx context.Context, key string, ttl time.Duration) (url string, expires time.Time, etag string, err error)
}

// URLLife is how long a device may use a bundle's URL; it asks for a new one.
const URLLife = 15 * time.Minute

// presignTimeout bounds the wait for an object store that does not answer:
// commands that need nothing of it wait behind.
const presignTimeout = 5 * time.Second

// While a part that a delivery needs is away: between two looks whether there is
// a way to the broker, and until a command that could not go out is tried again.
const (
	readyEvery  = 250 * time.Millisecond
	returnAfter = 5 * time.Second
)

// Config says how to build a Dispatcher. Zero numbers mean the default.
type Config struct {
	Topics     protocol.Topics
	Store      Store
	Publisher  Publisher
	Presigner  Presigner
	CommandKey ed25519.PrivateKey
	NextKey    ed25519.PrivateKey // signs for devices that have pinned it; nil: no key change is under way
	Wake       <-chan struct{}    // something may be due
	// Ready reports whether the Publisher has a way to the broker now: without
	// one nothing is claimed. nil: it always has.
	Ready      func() bool
	Registerer prometheus.Registerer
	Log        zerolog.Logger

	Batch    int           // commands of one claim; 500
	Parallel int           // signatures and publishes at once; 8
	MaxSleep time.Duration // between two looks without a wake-up; 5 s
}

// Dispatcher is the loop.
type Dispatcher struct {
	cfg    Config
	sent   *prometheus.CounterVec
	failed *prometheus.CounterVec
}

// New makes a Dispatcher; Run makes it work.
func New(cfg Config) (*Dispatcher, error) {
	if len(cfg.CommandKey) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("command key of %d bytes, want %d", len(cfg.CommandKey), ed25519.PrivateKeySize)
	}
	if cfg.Batch == 0 {
		cfg.Batch = 500
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = 8
	}
	if cfg.MaxSleep == 0 {
		cfg.MaxSleep = 5 * time.Second
	}
	f := promauto.With(cfg.Registerer)
	return &Dispatcher{
		cfg: cfg,
		sent: f.NewCounterVec(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "dispatch", Name: "sent_total",
			Help: "Commands published, repeats counted."}, []string{"type"}),
		failed: f.NewCounterVec(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "dispatch", Name: "failed_total",
			Help: "Deliveries that failed and are tried again after the backoff."}, []string{"step"}),
	}, nil
}

// Run sends what is due until ctx ends.
func (d *Dispatcher) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.cfg.Wake:
		case <-timer.C:
		}
		sleep, err := d.round(ctx)
		if err != nil && ctx.Err() == nil {
			d.cfg.Log.Error().Err(err).Msg("dispatch commands")
		}
		timer.Reset(sleep)
	}
}

// round sends everything that is due and returns how long nothing will be.
func (d *Dispatcher) round(ctx context.Context) (time.Duration, error) {
	for {
		if d.cfg.Ready != nil && !d.cfg.Ready() {
			return readyEvery, nil
		}
		n, err := d.runOnce(ctx)
		if err != nil {
			return time.Second, err
		}
		if n < d.cfg.Batch {
			break
		}
	}
	wait, ok, err := d.cfg.Store.NextSend(ctx)
	if err != nil {
		return time.Second, err
	}
	if !ok {
		return d.cfg.MaxSleep, nil
	}
	return min(max(wait, 10*time.Millisecond), d.cfg.MaxSleep), nil
}

// runOnce claims one batch and sends it. One command that cannot be sent does
// not hold up the others.
func (d *Dispatcher) runOnce(ctx context.Context) (int, error) {
	batch, err := d.cfg.Store.ClaimCommands(ctx, d.cfg.Batch)
	if err != nil {
		return 0, fmt.Errorf("claim commands: %w", err)
	}
	urls := &urls{cfg: &d.cfg, m: map[string]*signedURL{}}
	var failed failures
	var g errgroup.Group
	g.SetLimit(d.cfg.Parallel)
	for _, c := range batch {
		g.Go(func() error {
			if step, err := d.send(ctx, c, urls); err != nil {
				d.failed.WithLabelValues(step).Inc()
				failed.add(c, err)
				return nil
			}
			d.sent.WithLabelValues(c.Type).Inc()
			return nil
		})
	}
	_ = g.Wait() // no function returns an error
	return len(batch), d.giveBack(ctx, &failed)
}

// failures are the deliveries of one batch that failed.
type failures struct {
	mu    sync.Mutex
	n     int
	first error
	away  []fleet.Command // for want of a part that comes back
}

func (f *failures) add(c fleet.Command, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n++; f.first == nil {
		f.first = fmt.Errorf("command %s for %s: %w", c.ID, c.DeviceID, err)
	}
	if fleet.ErrorCode(err) == fleet.CodeUnavailable {
		f.away = append(f.away, c)
	}
}

// giveBack logs what failed, in one line however much it is, and returns the
// claims that may be tried again soon; the others wait for their backoff.
func (d *Dispatcher) giveBack(ctx context.Context, f *failures) error {
	if f.n == 0 || ctx.Err() != nil {
		return nil
	}
	d.cfg.Log.Warn().Err(f.first).Int("commands", f.n).Int("soon_again", len(f.away)).Msg("commands not sent; they are tried again")
	if len(f.away) == 0 {
		return nil
	}
	return d.cfg.Store.ReturnCommands(ctx, f.away, returnAfter)
}

func (d *Dispatcher) send(ctx context.Context, c fleet.Command, urls *urls) (step string, err error) {
	cmd, err := build(c)
	if err != nil {
		return "build", err
	}
	if cmd.Deploy != nil {
		u, err := urls.get(ctx, c.Bundle.ObjectKey)
		if err != nil {
			return "presign", fmt.Errorf("presign bundle %s: %w", c.Bundle.ID, err)
		}
		cmd.Deploy.Bundle.URL, cmd.Deploy.Bundle.URLExpiresAt, cmd.Deploy.Bundle.ETag = u.url, u.expires.Unix(), u.etag
	}
	key, err := d.key(c)
	if err != nil {
		return "sign", err
	}
	payload, err := protocol.SignCommand(cmd, key)
	if err != nil {
		return "sign", fmt.Errorf("sign: %w", err)
	}
	if err := d.cfg.Publisher.Publish(ctx, d.cfg.Topics.Device(c.DeviceID, protocol.KindCommand), payload, 1, false); err != nil {
		return "publish", fmt.Errorf("publish: %w", err)
	}
	return "", nil
}

// key is the one that the device has said to have pinned. One that has said
// nothing is taken to have what enrolment hands out.
func (d *Dispatcher) key(c fleet.Command) (ed25519.PrivateKey, error) {
	for _, key := range []ed25519.PrivateKey{d.cfg.CommandKey, d.cfg.NextKey} {
		if key == nil {
			continue
		}
		public, _ := key.Public().(ed25519.PublicKey) // always one
		if c.CommandKey == "" || c.CommandKey == protocol.CommandKeyText(public) {
			return key, nil
		}
	}
	return nil, fmt.Errorf("the device has pinned the command key %s, which this orchestrator does not have", c.CommandKey)
}

// urls presigns each object once a batch: a fleet gets one bundle.
type urls struct {
	cfg *Config

	mu sync.Mutex
	m  map[string]*signedURL
}

type signedURL struct {
	once    sync.Once
	url     string
	expires time.Time
	etag    string
	err     error
}

func (u *urls) get(ctx context.Context, key string) (*signedURL, error) {
	u.mu.Lock()
	s, ok := u.m[key]
	if !ok {
		s = &signedURL{}
		u.m[key] = s
	}
	u.mu.Unlock()
	s.once.Do(func() {
		op, cancel := context.WithTimeout(ctx, presignTimeout)
		defer cancel()
		s.url, s.expires, s.etag, s.err = u.cfg.Presigner.Presign(op, key, URLLife)
		if s.err != nil && op.Err() != nil && ctx.Err() == nil {
			s.err = fleet.Wrap(fleet.CodeUnavailable, s.err, "the object store does not answer")
		}
	})
	return s, s.err
}
