// Package tlsfile keeps TLS certificates that live in files: checked before use,
// read again when they change, the last good one kept when they become bad.
package tlsfile

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/secretfile"
)

// CheckEvery is how often Watch looks at the files.
const CheckEvery = 10 * time.Second

// soon is how long before its end a certificate is warned of.
const soon = 14 * 24 * time.Hour

// Pair is a certificate chain and its private key, both PEM. The key file is
// readable by its owner only.
type Pair struct {
	cert, key string
	now       func() time.Time
	current   atomic.Pointer[tls.Certificate]
}

// Load reads a pair and refuses one that is expired, not valid yet, or whose key
// belongs to another certificate or can be read by others.
func Load(certFile, keyFile string) (*Pair, error) {
	p := &Pair{cert: certFile, key: keyFile, now: time.Now}
	c, err := p.read()
	if err != nil {
		return nil, err
	}
	p.current.Store(c)
	return p, nil
}

func (p *Pair) read() (*tls.Certificate, error) {
	key, err := secretfile.Read(p.key)
	if err != nil {
		return nil, fmt.Errorf("TLS key: %w", err)
	}
	chain, err := os.ReadFile(p.cert)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	c, err := tls.X509KeyPair(chain, []byte(key))
	if err != nil {
		return nil, fmt.Errorf("TLS certificate %s with key %s: %w", p.cert, p.key, err)
	}
	now := p.now()
	switch {
	case now.After(c.Leaf.NotAfter):
		return nil, fmt.Errorf("TLS certificate %s has expired at %s", p.cert, c.Leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.Leaf.NotBefore):
		return nil, fmt.Errorf("TLS certificate %s is not valid before %s", p.cert, c.Leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return &c, nil
}

// Expires is when the certificate in use ends.
func (p *Pair) Expires() time.Time { return p.current.Load().Leaf.NotAfter }

// Server is a configuration for a listener; each handshake gets the newest pair.
func (p *Pair) Server() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.current.Load(), nil },
	}
}

// ClientCertificate is for tls.Config.GetClientCertificate.
func (p *Pair) ClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return p.current.Load(), nil
}

// Watch takes changed files over until ctx ends. Files that are no good leave
// the pair as it is and are reported once a change.
func (p *Pair) Watch(ctx context.Context, every time.Duration, log zerolog.Logger) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	seen, warned := p.stamp(), time.Time{}
	for {
		if end := p.Expires(); p.now().Add(soon).After(end) && p.now().Sub(warned) > 24*time.Hour {
			warned = p.now()
			log.Warn().Str("certificate", p.cert).Time("expires", end).Msg("the TLS certificate ends soon")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		stamp := p.stamp()
		if stamp == seen {
			continue
		}
		seen = stamp
		c, err := p.read()
		if err != nil {
			log.Error().Err(err).Msg("the changed TLS files are not used")
			continue
		}
		p.current.Store(c)
		warned = time.Time{}
		log.Info().Str("certificate", p.cert).Time("expires", c.Leaf.NotAfter).Msg("TLS certificate read again")
	}
}

// stamp changes when a file does, also when it is replaced through a symbolic
// link.
func (p *Pair) stamp() string {
	s := ""
	for _, path := range []string{p.cert, p.key} {
		info, err := os.Stat(path)
		if err != nil {
			s += "missing;"
			continue
		}
		s += fmt.Sprintf("%d %d %o;", info.ModTime().UnixNano(), info.Size(), info.Mode())
	}
	return s
}

// Roots reads certificate authorities, PEM.
func Roots(path string) (*x509.CertPool, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("certificate authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, errors.New("certificate authorities: " + path + " holds no certificate in PEM")
	}
	return pool, nil
}
