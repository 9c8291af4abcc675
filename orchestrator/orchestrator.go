// Package orchestrator wires the parts of the orchestrator: the admin API, the
// rollout engine, dispatch, ingest and the monitoring topics around one Postgres
// and one object store. It keeps no state of its own; any number of replicas
// may run.
package orchestrator

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/kernexhq/kernex/orchestrator/api"
	"github.com/kernexhq/kernex/orchestrator/deviceca"
	"github.com/kernexhq/kernex/orchestrator/dispatch"
	"github.com/kernexhq/kernex/orchestrator/ingest"
	"github.com/kernexhq/kernex/orchestrator/monitor"
	"github.com/kernexhq/kernex/orchestrator/objectstore"
	"github.com/kernexhq/kernex/orchestrator/postgres"
	"github.com/kernexhq/kernex/orchestrator/rollout"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/logging"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/secretfile"
)

// Config is what an orchestrator needs.
type Config struct {
	HTTP           string             // host:port of the admin API; port 0 picks a free one
	Postgres       string             // connection string; binary_parameters=yes says that it leads to a pooler
	PostgresDirect string             // for LISTEN and migrations, where Postgres is a pooler; "" then polls every 5 s
	MaxConns       int                // database connections; 0 is 20
	Objects        objectstore.Config // the bundles' bucket
	CommandKeyFile string             // made at the first start; every replica has the same
	NextCommandKey string             // file of the key that devices are to pin instead; made if it is missing; "" is none
	AdminTokenFile string             // where the first admin token goes; "" makes none
	Topics         protocol.Topics
	MaxBundle      int64         // bytes; 0 is 512 MiB
	Grace          time.Duration // nothing expires for so long after a start; 0 is 60 s
	TrustedProxies []netip.Prefix
	Console        http.Handler // serves /; may be nil
	DeviceCA       *deviceca.CA // issues client certificates to devices; may be nil
	Logger         zerolog.Logger
	Registry       *prometheus.Registry
	Ready          []api.Check // further conditions of /readyz
	// CanPublish reports whether there is a way to the broker now; nil: always.
	CanPublish func() bool
	// Connected gets a value when the broker may have lost what it retained; nil
	// where the broker lives as long as this process.
	Connected <-chan struct{}
}

// Transport is the way to devices and monitors.
type Transport interface {
	// Publish hands a message to the broker.
	Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error
	// Kick ends the connections of a device or of an API token.
	Kick(id string)
	// Recheck ends every connection whose grant does not hold any more.
	Recheck(holds func(device bool, id string, epoch int64) bool)
}

// Orchestrator is one replica.
type Orchestrator struct {
	cfg       Config
	transport Transport
	log       zerolog.Logger
	own       zerolog.Logger // of this package's loops: log without repeats
	fleet     string
	keys      keys
	db        *postgres.DB
	notes     *postgres.Listener
	ingest    *ingest.Ingest
	api       *api.API
	listener  net.Listener
	loops     map[string]func(context.Context) error
	adminMade bool
	lookAtAll atomic.Bool // the next recheck is of every connection
}

// New connects to Postgres and the object store, migrates, makes what the first
// start makes (fleet name, command key, admin token) and listens. Run does the
// work; without Run call Close.
func New(ctx context.Context, cfg Config, transport Transport) (_ *Orchestrator, err error) {
	if cfg.MaxConns == 0 {
		cfg.MaxConns = 20
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	o := &Orchestrator{cfg: cfg, transport: transport, log: cfg.Logger, own: logging.WithoutRepeats(cfg.Logger, repeatEvery)}
	keys, err := loadKeys(cfg.CommandKeyFile)
	if err != nil {
		return nil, err
	}
	if keys.next, err = loadNextKey(cfg.NextCommandKey); err != nil {
		return nil, err
	}
	o.keys = keys
	if o.db, err = postgres.Open(ctx, cfg.Postgres, cfg.MaxConns); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			o.Close()
		}
	}()
	if err := o.prepare(ctx); err != nil {
		return nil, err
	}
	objects, err := objectstore.New(cfg.Objects)
	if err != nil {
		return nil, err
	}
	if err := objects.EnsureBucket(ctx); err != nil {
		return nil, fmt.Errorf("prepare object store: %w", err)
	}
	if err := o.wire(keys, objects); err != nil {
		return nil, err
	}
	if o.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", cfg.HTTP); err != nil {
		return nil, fmt.Errorf("listen for the admin API: %w", err)
	}
	return o, nil
}

// prepare brings the database to this version and makes what only the first
// start makes.
func (o *Orchestrator) prepare(ctx context.Context) (err error) {
	if err := Migrate(ctx, o.cfg.Postgres, o.cfg.PostgresDirect); err != nil {
		return err
	}
	if o.fleet, err = o.db.FleetName(ctx); err != nil {
		return err
	}
	if next := o.keys.nextText(); next != "" {
		if err := o.db.SetNextCommandKey(ctx, next); err != nil {
			return err
		}
	}
	if o.cfg.AdminTokenFile == "" {
		return nil
	}
	o.adminMade, err = o.db.EnsureAdminToken(ctx, func(secret string) error {
		return secretfile.Write(o.cfg.AdminTokenFile, secret)
	})
	return err
}

func (o *Orchestrator) wire(k keys, objects *objectstore.Store) (err error) {
	cfg := o.cfg
	direct := cfg.PostgresDirect
	if direct == "" && !pooled(cfg.Postgres) {
		direct = cfg.Postgres
	}
	o.notes = postgres.NewListener(direct, o.part("notify"))
	o.notes.OnKick(o.kick)
	intake := ingest.Config{
		Topics: cfg.Topics, Store: o.db, Publisher: o.transport, Fleet: o.fleet,
		CommandKey: k.command.Public().(ed25519.PublicKey), SealKey: k.challenge,
		Registerer: cfg.Registry, Log: o.part("ingest"),
	}
	if cfg.DeviceCA != nil {
		intake.Certifier = certifier{o.db, cfg.DeviceCA}
	}
	if o.ingest, err = ingest.New(intake); err != nil {
		return err
	}
	send, err := dispatch.New(dispatch.Config{
		Topics: cfg.Topics, Store: o.db, Publisher: o.transport, Presigner: &presigner{Store: objects, etags: map[string]string{}}, CommandKey: k.command, NextKey: k.next,
		Wake: o.notes.Wake(postgres.WorkDispatch), Ready: cfg.CanPublish, Registerer: cfg.Registry, Log: o.part("dispatch"),
	})
	if err != nil {
		return err
	}
	engine := rollout.New(rollout.Config{Store: o.db, Wake: o.notes.Wake(postgres.WorkRollout), Log: o.part("rollout"), Grace: cfg.Grace})
	o.api = api.New(api.Config{
		Store: o.db, Objects: bucket{objects}, Logger: o.log.With().Str("part", "api").Logger(), Registry: cfg.Registry, Fleet: o.fleet, MaxBundle: cfg.MaxBundle,
		TrustedProxies: cfg.TrustedProxies, Console: cfg.Console, Warnings: o.warnings,
		Ready: append([]api.Check{{Name: "postgres", Run: o.db.Ready}, {Name: "object store", Run: objects.Ready}}, cfg.Ready...),
	})
	watch := monitor.New(monitor.Config{
		Topics: cfg.Topics, Store: o.db, Publisher: o.transport, Fleet: o.fleet, Holder: fleet.NewID("replica"),
		Wake: o.notes.Wake(postgres.WorkEvents), Connected: cfg.Connected, Log: o.part("monitor"),
	})
	numbered := o.notes.Wake(postgres.WorkEvents)
	o.loops = map[string]func(context.Context) error{
		"notify": o.notes.Run, "dispatch": send.Run, "rollout": engine.Run, "monitor": watch.Run, "recheck": o.recheck,
		"streams": func(ctx context.Context) error { return o.wakeStreams(ctx, numbered) },
		"sweep":   func(ctx context.Context) error { return o.sweepObjects(ctx, objects) },
	}
	return nil
}

// part returns the logger of one part. While Postgres or the broker is away a
// loop fails the same way again and again, which is worth a line now and then.
func (o *Orchestrator) part(name string) zerolog.Logger {
	return logging.WithoutRepeats(o.log.With().Str("part", name).Logger(), repeatEvery)
}

// repeatEvery is how often one part says the same in its log.
const repeatEvery = 30 * time.Second

// Addr is the address of the admin API.
func (o *Orchestrator) Addr() net.Addr { return o.listener.Addr() }

// AdminTokenMade reports whether this start made the first admin token.
func (o *Orchestrator) AdminTokenMade() bool { return o.adminMade }

// Receive takes a message that a device published; it never blocks.
func (o *Orchestrator) Receive(topic string, payload []byte) { o.ingest.Receive(topic, payload) }

// CreateEnrollmentToken makes a claim token and returns its secret.
func (o *Orchestrator) CreateEnrollmentToken(ctx context.Context, n fleet.NewEnrollmentToken) (string, error) {
	_, secret, err := o.db.CreateEnrollmentToken(ctx, n, fleet.System)
	return secret, err
}

// Run works until ctx ends: the API stops first, then the loops, and ingest
// last, after it has stored what it holds. The broker must have stopped calling
// Receive by then, or the last messages are the devices' to repeat.
func (o *Orchestrator) Run(ctx context.Context) error {
	defer o.Close()
	// ingest outlives the loops: what they publish may be answered.
	drain, stopIngest := context.WithCancel(context.WithoutCancel(ctx))
	defer stopIngest()
	ingested := make(chan error, 1)
	go func() { ingested <- o.ingest.Run(drain) }()

	g, ctx := errgroup.WithContext(ctx)
	for name, run := range o.loops {
		g.Go(func() error {
			if err := run(ctx); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	}
	server := &http.Server{Handler: o.handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	g.Go(func() error {
		if err := server.Serve(o.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the admin API: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		o.api.Close() // or Shutdown would wait for the event streams
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if server.Shutdown(limit) != nil {
			return server.Close() // a transfer that does not end is cut
		}
		return nil
	})
	err := g.Wait()
	stopIngest()
	return errors.Join(err, <-ingested)
}

// Close lets go of what New opened. Run calls it.
func (o *Orchestrator) Close() {
	if o.listener != nil {
		_ = o.listener.Close() // closed already after Run
	}
	if err := o.db.Close(); err != nil {
		o.log.Warn().Err(err).Msg("close Postgres")
	}
}

// wakeStreams tells the API's event streams of newly numbered events.
func (o *Orchestrator) wakeStreams(ctx context.Context, numbered <-chan struct{}) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-numbered:
			o.api.WakeEvents()
		}
	}
}
