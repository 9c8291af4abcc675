package link

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"
)

// tlsConfig is the configuration for one session. The client certificate goes to
// brokers that ask for one, and certAsked tells that this one did.
func (l *Link) tlsConfig() *tls.Config {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if l.endpoint.TLS != nil {
		conf = l.endpoint.TLS.Clone()
	}
	l.certAsked = false
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		l.certAsked = true // before the handshake returns, which Dial waits for
		if l.device.Certificate != nil {
			if cert := l.device.Certificate(); cert != nil {
				return cert, nil
			}
		}
		return &tls.Certificate{}, nil
	}
	return conf
}

// refusedCertificate reports whether a connection failed as it does when the
// broker does not take the client's certificate: by a TLS alert, or, since TLS
// 1.3 tells the client only after its handshake, by an end before CONNACK that
// may have overtaken the alert. A broker that is down refuses the socket, and a
// lost network is a timeout: neither counts.
func refusedCertificate(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error" ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
