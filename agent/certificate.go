package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
)

// certificate is the device's client certificate, for brokers that ask for one.
// A device whose orchestrator issues none has none. It can be had again at any
// time: whatever is wrong with the file, the device goes on without.
type certificate struct {
	state stateDir
	key   identity.PrivateKey

	mu      sync.Mutex
	current *tls.Certificate
	ahead   time.Duration // what the orchestrator's clock was ahead of ours by, at its last ack
	asked   time.Time     // when renewal was last asked for, on this connection
}

// openCertificate reads identity/cert.pem. The error says why it was not taken.
func openCertificate(s stateDir, key identity.PrivateKey) (*certificate, error) {
	c := &certificate{state: s, key: key}
	text, err := os.ReadFile(s.certPath())
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err == nil {
		c.current, err = key.Certificate(text)
	}
	if err != nil {
		err = fmt.Errorf("client certificate %s: %w", s.certPath(), err)
	}
	return c, err
}

// get returns the certificate, nil if there is none.
func (c *certificate) get() *tls.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

// take keeps a certificate that the orchestrator has issued to the device. One
// that is not newer changes nothing.
func (c *certificate) take(text, deviceID string) (taken bool, err error) {
	next, err := c.key.Certificate([]byte(text))
	if err != nil {
		return false, err
	}
	if leaf := next.Leaf; leaf.Subject.CommonName != deviceID || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return false, fleet.Errorf(fleet.CodeInvalid, "the certificate is for %q and %v, want this device, %s, as a client", leaf.Subject.CommonName, leaf.ExtKeyUsage, deviceID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && next.Leaf.Equal(c.current.Leaf) {
		return false, nil
	}
	if err := c.state.fs.WriteFile("certificate", c.state.certPath(), []byte(text), 0o600); err != nil {
		return false, err
	}
	c.current, c.asked = next, time.Time{}
	return true, nil
}

// serverTime notes the orchestrator's clock. It decides about renewal and
// nothing else, so it may be unsigned: a device without a clock would never ask.
func (c *certificate) serverTime(unix int64) {
	if unix <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead = time.Until(time.Unix(unix, 0))
}

// reconnected lets the next due renewal be asked for at once.
func (c *certificate) reconnected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = time.Time{}
}

// Bounds of the wait between two requests for the same certificate.
const (
	minRenewWait = 10 * time.Second
	maxRenewWait = 6 * time.Hour
)

// due reports whether to ask for the next certificate now, and in how long to
// look again: from 2/3 of the life on (up to 1/30 later, by the serial number,
// so that a fleet that enrolled in an hour does not come back in one), then again
// after a twentieth of what is left.
func (c *certificate) due(now time.Time) (ask bool, next time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current == nil {
		return false, time.Hour
	}
	leaf := c.current.Leaf
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	spread := time.Duration(new(big.Int).And(leaf.SerialNumber, big.NewInt(0xff)).Int64())
	from := leaf.NotBefore.Add(life*2/3 + life/30*spread/256)
	there := now.Add(c.ahead)
	if there.Before(from) {
		return false, min(from.Sub(there), time.Hour)
	}
	wait := min(max(leaf.NotAfter.Sub(there)/20, minRenewWait), maxRenewWait)
	if since := now.Sub(c.asked); !c.asked.IsZero() && since < wait {
		return false, min(wait-since, time.Hour)
	}
	c.asked = now
	return true, min(wait, time.Hour)
}
