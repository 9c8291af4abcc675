// Package up is `kernex up`: Postgres, the object store, the broker, the
// orchestrator and, on request, demo devices in one process tree.
package up

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/orchestrator"
	"github.com/kernexhq/kernex/orchestrator/api"
	"github.com/kernexhq/kernex/orchestrator/console"
	"github.com/kernexhq/kernex/orchestrator/objectstore"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/logging"
	"github.com/kernexhq/kernex/pkg/pgcluster"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/s3gw"
	"github.com/kernexhq/kernex/pkg/secretfile"
	"github.com/kernexhq/kernex/pkg/service"
)

// Cmd is the command line of `kernex up`.
type Cmd struct {
	Data        string `default:"./.kernex" env:"KERNEX_DATA" placeholder:"DIR" help:"Everything that must survive: database, bundles, keys, the admin token."`
	HTTP        string `name:"http" default:"127.0.0.1:8080" env:"KERNEX_HTTP" placeholder:"ADDR" help:"Address of the admin API; port 0 picks a free one."`
	MQTT        string `name:"mqtt" default:"127.0.0.1:1883" env:"KERNEX_MQTT" placeholder:"ADDR" help:"Address for devices and monitoring tools."`
	S3Listen    string `name:"s3-listen" default:"127.0.0.1:8081" env:"KERNEX_S3_LISTEN" placeholder:"ADDR" help:"Address of the private object store, from which devices download."`
	S3PublicURL string `name:"s3-public-url" env:"KERNEX_S3_PUBLIC_URL" placeholder:"URL" help:"How devices reach the object store, where it is not the listen address."`
	Postgres    string `env:"KERNEX_POSTGRES" placeholder:"DSN" help:"Use this database instead of a private one."`
	Direct      string `name:"postgres-direct" env:"KERNEX_POSTGRES_DIRECT" placeholder:"DSN" help:"The same database without a pooler between, for notifications."`
	Demo        int    `default:"0" env:"KERNEX_DEMO" placeholder:"N" help:"Run N devices on this machine, labelled demo=true."`
	Agent       string `env:"KERNEX_AGENT" placeholder:"FILE" help:"kernex-agent for the demo devices; default: beside this program, or in PATH."`
	MaxBundle   Size   `default:"512MiB" env:"KERNEX_MAX_BUNDLE" placeholder:"SIZE" help:"Largest bundle accepted."`
	LogLevel    string `default:"info" enum:"debug,info,warn,error" env:"KERNEX_LOG_LEVEL" help:"debug, info, warn or error."`
	LogFormat   string `default:"auto" enum:"auto,json,console" env:"KERNEX_LOG_FORMAT" help:"auto, json or console; auto is console on a terminal."`
}

// Addresses is what addresses.json holds: the ports that were picked.
type Addresses struct {
	HTTP string `json:"http"`
	MQTT string `json:"mqtt"`
	S3   string `json:"s3"`
}

// database is the private cluster's database.
const database = "kernex"

// s3Key names the account of the private object store.
const s3Key = "kernex"

// stack is the running parts, each set by its own start.
type stack struct {
	cmd     Cmd
	dir     string
	log     zerolog.Logger
	reg     *prometheus.Registry
	topics  protocol.Topics
	secret  string
	dsn     string
	cluster *pgcluster.Cluster
	objects *s3gw.Store
	broker  *broker.Broker
	orch    *orchestrator.Orchestrator
	demo    *demo
	ready   atomic.Bool
}

// Run starts everything, prints where it is and what to do next, and works until
// ctx ends; then it stops everything in reverse order.
func (c *Cmd) Run(ctx context.Context, stdout io.Writer) error {
	log, err := logging.New(logging.Config{Level: c.LogLevel, Format: c.LogFormat})
	if err != nil {
		return err
	}
	s := &stack{cmd: *c, log: log, reg: prometheus.NewRegistry(), topics: protocol.NewTopics("")}
	s.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := s.prepare(); err != nil {
		return err
	}
	g := service.NewGroup(log)
	if c.Postgres == "" {
		g.Add(service.Service{Name: "postgres", Start: s.startPostgres, Stop: func(ctx context.Context) error { return s.cluster.Stop(ctx) }, StopTimeout: 7500 * time.Millisecond})
	}
	g.Add(service.Service{Name: "object store", Start: s.startObjects, Stop: func(ctx context.Context) error { return s.objects.Stop(ctx) }, StopTimeout: 3 * time.Second})
	g.Add(service.Service{Name: "orchestrator", Start: s.startOrchestrator, Run: func(ctx context.Context) error { return s.orch.Run(ctx) }, StopTimeout: 4 * time.Second})
	g.Add(service.Service{Name: "broker", Run: s.serveBroker, StopTimeout: 3 * time.Second})
	if c.Demo > 0 {
		s.demo = &demo{stack: s}
		g.Add(service.Service{Name: "demo devices", Start: s.demo.start, Stop: s.demo.stop, StopTimeout: 4 * time.Second})
	}
	return g.Run(ctx, func() {
		s.ready.Store(true)
		s.welcome(stdout)
	})
}

// prepare makes the data folder and its secrets and finds an address for the
// broker: all that can fail on a wrong setting, before anything starts.
func (s *stack) prepare() (err error) {
	if s.cmd.Demo < 0 || s.cmd.Demo > 1000 {
		return fleet.Errorf(fleet.CodeInvalid, "--demo is %d, it must be between 0 and 1000", s.cmd.Demo)
	}
	if s.dir, err = filepath.Abs(s.cmd.Data); err != nil {
		return fmt.Errorf("find the data folder: %w", err)
	}
	for name, addr := range map[string]string{"--http": s.cmd.HTTP, "--mqtt": s.cmd.MQTT, "--s3-listen": s.cmd.S3Listen} {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return fleet.Errorf(fleet.CodeInvalid, "%s %q is no host:port, such as 127.0.0.1:8080", name, addr)
		}
	}
	// Others may pass through, which the Postgres user must; every secret in it
	// is 0600.
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	s.secret, _, err = secretfile.ReadOrMake(filepath.Join(s.dir, "s3.key"), func() (string, error) {
		b := make([]byte, 30)
		_, err := rand.Read(b)
		return base64.RawURLEncoding.EncodeToString(b), err
	})
	return err
}

func (s *stack) startPostgres(ctx context.Context) (err error) {
	s.cluster, err = pgcluster.Start(ctx, pgcluster.Config{DataDir: filepath.Join(s.dir, "postgres"), Logger: s.part("postgres")})
	if err != nil {
		return err
	}
	if err := s.cluster.CreateDatabase(ctx, database); err != nil {
		return errors.Join(fmt.Errorf("make database %s: %w", database, err), s.cluster.Stop(context.WithoutCancel(ctx)))
	}
	s.dsn = s.cluster.DSN(database)
	return nil
}

func (s *stack) startObjects(ctx context.Context) (err error) {
	s.objects, err = s3gw.Start(ctx, s3gw.Config{
		DataDir: filepath.Join(s.dir, "objects"), Listen: s.cmd.S3Listen, AccessKey: s3Key, SecretKey: s.secret, Logger: s.part("object store"),
	})
	return err
}

func (s *stack) startOrchestrator(ctx context.Context) (err error) {
	if s.dsn == "" {
		s.dsn = s.cmd.Postgres
	}
	s.broker, err = broker.New(broker.Config{Addr: s.cmd.MQTT, Topics: s.topics, Logger: s.part("broker"), Registerer: s.reg})
	if err != nil {
		return err
	}
	s.orch, err = orchestrator.New(ctx, orchestrator.Config{
		HTTP: s.cmd.HTTP, Postgres: s.dsn, PostgresDirect: s.cmd.Direct,
		Objects: objectstore.Config{
			Endpoint: s.objects.URL(), PublicURL: s.cmd.S3PublicURL, Region: s.objects.Region(), AccessKey: s3Key, SecretKey: s.secret,
			Bucket: "bundles", AllowInsecure: true, // on this machine, by --s3-listen's default
		},
		CommandKeyFile: filepath.Join(s.dir, "command.key"), AdminTokenFile: filepath.Join(s.dir, "admin.token"),
		Topics: s.topics, MaxBundle: int64(s.cmd.MaxBundle), Logger: s.log, Registry: s.reg, Console: console.Handler(),
		Ready: []api.Check{{Name: "start", Run: s.started}},
	}, transport{s.broker})
	if err != nil {
		// Serve lets go of the broker's address.
		ended, cancel := context.WithCancel(ctx)
		cancel()
		return errors.Join(err, s.broker.Serve(ended, nil, nil))
	}
	return s.writeAddresses()
}

// started makes /readyz wait for the last part.
func (s *stack) started(context.Context) error {
	if !s.ready.Load() {
		return fleet.Errorf(fleet.CodeUnavailable, "still starting")
	}
	return nil
}

func (s *stack) serveBroker(ctx context.Context) error {
	return s.broker.Serve(ctx, authorizer{s.orch}, s.orch)
}

// writeAddresses tells scripts which ports were picked.
func (s *stack) writeAddresses() error {
	b, err := json.Marshal(Addresses{HTTP: s.orch.Addr().String(), MQTT: s.broker.Addr().String(), S3: s.objects.URL()})
	if err != nil {
		return fmt.Errorf("encode addresses: %w", err)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "addresses.json"), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write addresses: %w", err)
	}
	return nil
}

func (s *stack) part(name string) zerolog.Logger { return s.log.With().Str("part", name).Logger() }
