package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Certificate joins a client certificate (PEM, the device's own first, then any
// that lead to the CA) with the key, for tls.Config; its Leaf is set. Anything
// but certificates and white space, and a certificate for another key, is
// fleet.CodeInvalid.
func (k PrivateKey) Certificate(chain []byte) (*tls.Certificate, error) {
	if k.signer == nil {
		return nil, errNoKey
	}
	out := &tls.Certificate{PrivateKey: k.signer}
	for rest := bytes.TrimSpace(chain); len(rest) > 0; rest = bytes.TrimSpace(rest) {
		block, more := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || !bytes.HasPrefix(rest, []byte("-----BEGIN")) {
			return nil, fleet.Errorf(fleet.CodeInvalid, "certificate: not a series of PEM blocks of type CERTIFICATE")
		}
		out.Certificate = append(out.Certificate, block.Bytes)
		rest = more
	}
	if len(out.Certificate) == 0 {
		return nil, fleet.Errorf(fleet.CodeInvalid, "certificate: empty")
	}
	leaf, err := x509.ParseCertificate(out.Certificate[0])
	if err != nil {
		return nil, fleet.Errorf(fleet.CodeInvalid, "certificate: %v", err)
	}
	if key, err := newPublicKey(leaf.PublicKey); err != nil || !key.Equal(k.public) {
		return nil, fleet.Errorf(fleet.CodeInvalid, "certificate %q is for another key", leaf.Subject.CommonName)
	}
	out.Leaf = leaf
	return out, nil
}
