package main

import (
	"context"
	"crypto/tls"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/orchestrator"
	"github.com/kernexhq/kernex/orchestrator/remote"
	"github.com/kernexhq/kernex/pkg/config"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/secretfile"
	"github.com/kernexhq/kernex/pkg/tlsfile"
)

// A login that this replica made lives 24 h. It is used for new connections for
// 8 h, and a connection lives 12 h at most: none is cut by the expiry.
const (
	reuseLogin     = 8 * time.Hour
	connectionLife = 12 * time.Hour
)

// watched is a certificate that is read again when its files change.
type watched struct {
	name string
	pair *tlsfile.Pair
}

func (w watched) watch(ctx context.Context, log zerolog.Logger) error {
	return w.pair.Watch(ctx, tlsfile.CheckEvery, log)
}

// transport is the way to the broker; it connects to nothing yet.
func (r *replica) transport() (*remote.Transport, error) {
	var conf *tls.Config
	if r.BrokerCA != "" || r.BrokerCert != "" {
		conf = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if r.BrokerCA != "" {
		roots, err := tlsfile.Roots(r.BrokerCA)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = roots
	}
	if r.BrokerCert != "" {
		pair, err := tlsfile.Load(r.BrokerCert, r.BrokerKey)
		if err != nil {
			return nil, err
		}
		conf.GetClientCertificate = pair.ClientCertificate
		r.files = append(r.files, watched{"broker certificate", pair})
	}
	if u, err := url.Parse(r.Broker); err == nil && (u.Scheme == "tcp" || u.Scheme == "mqtt") && !config.Loopback(u.Hostname()) {
		r.log.Warn().Str("broker", r.Broker).Msg("this program's login crosses the network unencrypted: use mqtts, or a network that is trusted")
	}
	if r.BrokerPasswordFile != "" {
		if _, err := secretfile.Read(r.BrokerPasswordFile); err != nil {
			return nil, err
		}
	}
	r.login = &login{username: r.BrokerUsername, passwordFile: r.BrokerPasswordFile, name: "replica " + hostName()}
	life := time.Duration(0)
	if r.BrokerUsername == "" && r.BrokerCert == "" {
		r.login.own, life = true, connectionLife
	}
	group, err := orchestrator.ShareGroup(r.CommandKeyFile)
	if err != nil {
		return nil, err
	}
	return remote.New(remote.Config{
		Topics: protocol.NewTopics(r.Root), Broker: r.Broker, TLS: conf, Login: r.login.get, Life: life,
		Group: group, Name: clientName(hostName()), Connections: r.BrokerConnections, Registerer: r.reg, Log: r.part("transport"),
	})
}

// clientName keeps of a host's name what every broker takes in a client id.
func clientName(host string) string {
	host = strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' {
			return c
		}
		return '-'
	}, host)
	return "kernex-" + host[:min(len(host), 64)]
}

// login is how this replica logs in to the broker.
type login struct {
	username, passwordFile string
	own                    bool // kernex-broker: a service token of our own making
	name                   string
	mint                   func(ctx context.Context, name string) (string, error)

	mu     sync.Mutex
	secret string
	made   time.Time
}

// get returns user name and password for a new connection. A refused token is
// made anew once, for all connections that hear of it together.
func (l *login) get(ctx context.Context, refused bool) (username, password string, err error) {
	if !l.own {
		if l.passwordFile != "" {
			password, err = secretfile.Read(l.passwordFile)
		}
		return l.username, password, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	age := time.Since(l.made)
	if l.secret == "" || age > reuseLogin || refused && age > 30*time.Second {
		op, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		secret, err := l.mint(op, l.name)
		if err != nil {
			return "", "", err
		}
		l.secret, l.made = secret, time.Now()
	}
	return "service", l.secret, nil
}
