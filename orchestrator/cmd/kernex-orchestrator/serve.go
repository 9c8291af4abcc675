package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/orchestrator"
	"github.com/kernexhq/kernex/orchestrator/api"
	"github.com/kernexhq/kernex/orchestrator/console"
	"github.com/kernexhq/kernex/orchestrator/deviceca"
	"github.com/kernexhq/kernex/orchestrator/objectstore"
	"github.com/kernexhq/kernex/orchestrator/remote"
	"github.com/kernexhq/kernex/pkg/buildinfo"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/logging"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/secretfile"
	"github.com/kernexhq/kernex/pkg/service"
)

// replica is the running parts.
type replica struct {
	settings
	log   zerolog.Logger
	reg   *prometheus.Registry
	orch  *orchestrator.Orchestrator
	login *login
	files []watched // certificates
	group *service.Group
}

// serve runs one replica until ctx ends.
func serve(ctx context.Context, s settings) error {
	if err := s.check(); err != nil {
		return err
	}
	log, err := logging.New(logging.Config{Level: s.LogLevel, Format: s.LogFormat})
	if err != nil {
		return err
	}
	r := &replica{settings: s, log: log, reg: prometheus.NewRegistry(), group: service.NewGroup(log)}
	r.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	transport, err := r.transport()
	if err != nil {
		return err
	}
	secret, guard, err := r.internalFiles()
	if err != nil {
		return err
	}
	if err := r.start(ctx, transport); err != nil {
		return err
	}
	listener, err := r.listenInternal(ctx, guard)
	if err == nil {
		err = r.addParts(transport, listener, secret)
	}
	if err != nil {
		r.orch.Close()
		return err
	}
	return r.group.Run(ctx, func() {
		log.Info().Str("version", buildinfo.String()).Stringer("http", r.orch.Addr()).Msg("orchestrator running")
		if r.orch.AdminTokenMade() {
			log.Info().Str("file", s.AdminTokenFile).Msg("the first admin token was made")
		}
	})
}

// start waits for what is not up yet and makes the orchestrator.
func (r *replica) start(ctx context.Context, transport *remote.Transport) error {
	key, err := secretfile.Read(r.S3SecretKeyFile)
	if err != nil {
		return err
	}
	proxies, err := r.proxies()
	if err != nil {
		return err
	}
	objects := objectstore.Config{
		Endpoint: r.S3Endpoint, PublicURL: r.S3PublicURL, Region: r.S3Region, AccessKey: r.S3AccessKey, SecretKey: key,
		Bucket: r.S3Bucket, AllowInsecure: r.S3Insecure,
	}
	if _, err := objectstore.New(objects); err != nil { // before waiting for anything
		return fleet.Errorf(fleet.CodeInvalid, "%w%s", err, hint(r.S3Insecure))
	}
	var ca *deviceca.CA
	if r.CAKeyFile != "" {
		if ca, err = deviceca.Open(r.CAKeyFile, r.CACertFile, r.DeviceCertLife); err != nil {
			return err
		}
	}
	if err := orchestrator.Await(ctx, r.StartWait, r.log, &objects, r.dsn(), r.PostgresDirect); err != nil {
		return err
	}
	cfg := orchestrator.Config{
		HTTP: r.HTTP, Postgres: r.dsn(), PostgresDirect: r.PostgresDirect, MaxConns: r.PostgresConns, Objects: objects,
		CommandKeyFile: r.CommandKeyFile, NextCommandKey: r.NextCommandKeyFile, AdminTokenFile: r.AdminTokenFile, Topics: protocol.NewTopics(r.Root), MaxBundle: int64(r.MaxBundle),
		TrustedProxies: proxies, Console: console.Handler(), DeviceCA: ca, Logger: r.log, Registry: r.reg,
		Ready:      []api.Check{{Name: "broker", Run: transport.Ready}},
		CanPublish: func() bool { return transport.Up() > 0 }, Connected: transport.Connected(),
	}
	if r.orch, err = orchestrator.New(ctx, cfg, transport); err != nil {
		return err
	}
	r.login.mint = r.orch.BrokerToken
	return nil
}

func hint(insecure bool) string {
	if insecure {
		return ""
	}
	return " (--s3-insecure allows http://)"
}

// addParts adds everything that runs, in the order of the start. Stopping goes
// the other way: no more messages are taken, the orchestrator stores what it
// has and acknowledges it, the connections end.
func (r *replica) addParts(transport *remote.Transport, internal net.Listener, secret string) error {
	r.group.Add(service.Service{Name: "transport", Run: func(ctx context.Context) error { return transport.Run(ctx, r.orch.Receive) }, StopTimeout: 3 * time.Second})
	r.group.Add(service.Service{Name: "orchestrator", Run: r.orch.Run, StopTimeout: 8 * time.Second})
	if internal != nil {
		handler, err := r.orch.Internal(secret)
		if err != nil {
			return err
		}
		r.group.Add(service.HTTP("internal", internal, handler))
	}
	for _, f := range r.files {
		r.group.Add(service.Service{Name: f.name, Run: func(ctx context.Context) error { return f.watch(ctx, r.part("tls")) }})
	}
	r.group.Add(service.Service{Name: "intake", Stop: transport.Quiesce, StopTimeout: 3 * time.Second})
	return nil
}

// migrate brings the database to this version's schema.
func migrate(ctx context.Context, s settings) error {
	if err := s.checkDatabase(); err != nil {
		return err
	}
	log, err := logging.New(logging.Config{Level: s.LogLevel, Format: s.LogFormat})
	if err != nil {
		return err
	}
	dsn := s.PostgresDirect
	if dsn == "" {
		dsn = s.Postgres
	}
	if err := orchestrator.Await(ctx, s.StartWait, log, nil, dsn); err != nil {
		return err
	}
	if err := orchestrator.Migrate(ctx, s.Postgres, s.PostgresDirect); err != nil {
		return err
	}
	log.Info().Msg("the database has this version's schema")
	return nil
}

func (r *replica) part(name string) zerolog.Logger { return r.log.With().Str("part", name).Logger() }

// hostName names this replica to operators; a host without a name is one all
// the same.
func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return fmt.Sprintf("pid%d", os.Getpid())
	}
	return name
}
