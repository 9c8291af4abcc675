package orchestrator

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/kernexhq/kernex/orchestrator/deviceca"
	"github.com/kernexhq/kernex/orchestrator/postgres"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// certifier issues client certificates to devices and records them.
type certifier struct {
	db *postgres.DB
	ca *deviceca.CA
}

// Certify implements ingest.Certifier.
func (c certifier) Certify(ctx context.Context, deviceID string) (certificate, ca string, err error) {
	got, err := c.db.CertifyDevice(ctx, deviceID, c.ca.KeyID(), func(publicKeyDER []byte, now time.Time) (fleet.Certificate, error) {
		return c.ca.Issue(deviceID, publicKeyDER, now)
	})
	return got.PEM, c.ca.PEM(), err
}

// What brokers need of the CA. Both are public by nature: neither names a device.
const (
	caPath  = "/pki/devices-ca.pem"
	crlPath = "/pki/devices.crl"
)

// crlAge is how long a revocation list is given out again before the next is
// made, so that asking for it costs nothing.
const crlAge = 10 * time.Second

// handler serves the admin API and, if there is a CA, what it publishes.
func (o *Orchestrator) handler() http.Handler {
	if o.cfg.DeviceCA == nil {
		return o.api
	}
	list := &revocations{certifier: certifier{o.db, o.cfg.DeviceCA}, failed: func(err error) {
		o.log.Error().Err(err).Msg("make the revocation list")
	}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet:
			o.api.ServeHTTP(w, r)
		case r.URL.Path == caPath:
			sendPEM(w, []byte(o.cfg.DeviceCA.PEM()))
		case r.URL.Path == crlPath:
			list.ServeHTTP(w, r)
		default:
			o.api.ServeHTTP(w, r)
		}
	})
}

func sendPEM(w http.ResponseWriter, b []byte) {
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write(b)
}

// revocations serves the revocation list.
type revocations struct {
	certifier
	failed func(error)

	mu   sync.Mutex
	list []byte
	made time.Time
}

func (v *revocations) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	list, err := v.current(r.Context())
	if err != nil {
		v.failed(err)
		http.Error(w, "the revocation list cannot be made now", http.StatusServiceUnavailable)
		return
	}
	sendPEM(w, list)
}

func (v *revocations) current(ctx context.Context) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.list != nil && time.Since(v.made) < crlAge {
		return v.list, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	revoked, err := v.db.RevokedCertificates(ctx, v.ca.KeyID())
	if err != nil {
		return nil, err
	}
	list, err := v.ca.CRL(revoked, time.Now())
	if err != nil {
		return nil, err
	}
	v.list, v.made = list, time.Now()
	return list, nil
}
