// Package deviceca is the fleet's certificate authority for devices: it signs
// client certificates for keys that have enrolled, for MQTT brokers that know
// devices by certificate instead of asking the orchestrator.
package deviceca

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// DefaultLife is how long a device's certificate is good for: a device that was
// in store for a quarter enrols again by itself, and a stolen key whose broker
// has no revocation list is of no use after it.
const DefaultLife = 90 * 24 * time.Hour

// Bounds of a certificate's life. Shorter ones would be renewed all the time.
const (
	MinLife = time.Minute
	MaxLife = 10 * 365 * 24 * time.Hour
)

// skew is how far a broker's clock may be behind: certificates are valid from so
// long ago. Of a short life it is only a part.
const skew = 10 * time.Minute

// crlLife is how long a revocation list may be used. OpenSSL refuses every
// certificate when its list is over, so this is much longer than between two
// fetches.
const crlLife = 30 * 24 * time.Hour

// CA issues certificates. Its methods may be called at the same time.
type CA struct {
	key  crypto.Signer
	cert *x509.Certificate
	pem  string
	life time.Duration
}

// PEM returns the CA's certificate: what brokers have to trust.
func (c *CA) PEM() string { return c.pem }

// KeyID names the CA's key, in hex. Certificates of another one are not this
// CA's to repeat or revoke.
func (c *CA) KeyID() string { return hex.EncodeToString(c.cert.SubjectKeyId) }

// Issue signs a client certificate: CN = the device id, for the key given as
// SubjectPublicKeyInfo, for client authentication only, with a random serial
// number, ending with the CA's own certificate at the latest.
func (c *CA) Issue(deviceID string, publicKeyDER []byte, now time.Time) (fleet.Certificate, error) {
	if !fleet.ValidDeviceID(deviceID) {
		return fleet.Certificate{}, fleet.Errorf(fleet.CodeInvalid, "no certificate for the device id %.64q", deviceID)
	}
	key, err := x509.ParsePKIXPublicKey(publicKeyDER)
	if err != nil {
		return fleet.Certificate{}, fmt.Errorf("key of device %s: %w", deviceID, err)
	}
	serial, err := newSerial()
	if err != nil {
		return fleet.Certificate{}, err
	}
	end := now.Add(c.life)
	if end.After(c.cert.NotAfter) {
		end = c.cert.NotAfter
	}
	if !now.Before(end) {
		return fleet.Certificate{}, fmt.Errorf("the CA for devices has ended at %s", c.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: deviceID},
		NotBefore: now.Add(-min(skew, c.life/20)), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, c.cert, key, c.key)
	if err != nil {
		return fleet.Certificate{}, fmt.Errorf("sign the certificate of device %s: %w", deviceID, err)
	}
	return fleet.Certificate{Serial: serial.Text(16), Issuer: c.KeyID(), PEM: encode(der), NotAfter: end.Truncate(time.Second)}, nil
}

// CRL signs the list of revoked certificates, PEM. Brokers that are given one
// refuse those at the next connection.
func (c *CA) CRL(revoked []fleet.RevokedCertificate, now time.Time) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(now.UnixMilli()), ThisUpdate: now.Add(-skew), NextUpdate: now.Add(crlLife)}
	for _, r := range revoked {
		serial, ok := new(big.Int).SetString(r.Serial, 16)
		if !ok {
			return nil, fmt.Errorf("serial number %q is not hex", r.Serial)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: r.RevokedAt})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign the revocation list: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}), nil
}

// newSerial returns 127 random bits: positive, and never two alike.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
