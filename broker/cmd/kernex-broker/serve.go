package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/httpauth"
	"github.com/kernexhq/kernex/pkg/buildinfo"
	"github.com/kernexhq/kernex/pkg/config"
	"github.com/kernexhq/kernex/pkg/logging"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/secretfile"
	"github.com/kernexhq/kernex/pkg/service"
	"github.com/kernexhq/kernex/pkg/tlsfile"
)

// serve runs the broker until ctx ends, then closes every connection.
func serve(ctx context.Context, s settings) error {
	if err := s.check(); err != nil {
		return err
	}
	log, err := logging.New(logging.Config{Level: s.LogLevel, Format: s.LogFormat})
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	auth, err := authorizer(s, reg, log)
	if err != nil {
		return err
	}
	defer auth.Close()
	g := service.NewGroup(log)
	cfg := broker.Config{Topics: protocol.NewTopics(s.Root), Logger: part(log, "broker"), Registerer: reg, MaxClients: s.MaxClients, OnKick: auth.Forget}
	if s.MQTT != "" {
		cfg.Also = append(cfg.Also, broker.Listen{Addr: s.MQTT})
	}
	var pair *tlsfile.Pair
	if s.MQTTS != "" {
		if pair, err = tlsfile.Load(s.TLSCert, s.TLSKey); err != nil {
			return err
		}
		cfg.Also = append(cfg.Also, broker.Listen{Addr: s.MQTTS, TLS: pair.Server()})
	}
	if s.HTTP != "" {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.HTTP)
		if err != nil {
			return fmt.Errorf("listen for --http: %w", err)
		}
		defer l.Close() // closed already when it was served
		log.Info().Stringer("addr", l.Addr()).Msg("serving /livez, /readyz and /metrics")
		g.Add(service.HTTP("http", l, probes(auth, reg, part(log, "http"))))
	}
	b, err := broker.New(cfg)
	if err != nil {
		return err
	}
	g.Add(service.Service{Name: "broker", Run: func(ctx context.Context) error { return b.Serve(ctx, auth, nil) }})
	g.Add(service.Service{Name: "credentials", Run: func(ctx context.Context) error { return auth.Watch(ctx, b) }})
	if pair != nil {
		g.Add(service.Service{Name: "certificate", Run: func(ctx context.Context) error { return pair.Watch(ctx, tlsfile.CheckEvery, part(log, "tls")) }})
	}
	log.Info().Str("version", buildinfo.String()).Strs("authorizers", s.Authorizer).Msg("started")
	return g.Run(ctx, nil)
}

// authorizer asks the orchestrators.
func authorizer(s settings, reg prometheus.Registerer, log zerolog.Logger) (*httpauth.Authorizer, error) {
	secret, err := secretfile.Read(s.SecretFile)
	if err != nil {
		return nil, err
	}
	var conf *tls.Config
	if s.AuthorizerCA != "" {
		roots, err := tlsfile.Roots(s.AuthorizerCA)
		if err != nil {
			return nil, err
		}
		conf = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	for _, raw := range s.Authorizer {
		if u, err := url.Parse(raw); err == nil && u.Scheme == "http" && !config.Loopback(u.Hostname()) {
			log.Warn().Str("authorizer", raw).Msg("logins cross the network unencrypted: use https, or a network that is trusted")
		}
	}
	return httpauth.New(httpauth.Config{URLs: s.Authorizer, Secret: secret, TLS: conf, Registerer: reg, Log: part(log, "authorizer")})
}

func part(log zerolog.Logger, name string) zerolog.Logger {
	return log.With().Str("part", name).Logger()
}
