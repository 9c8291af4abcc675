package mqttclient

import (
	"context"
	"crypto/tls"
	"net"
	"sync/atomic"
	"time"
)

// conn gives every write a deadline. Paho sets one for PUBLISH only; its pings
// and acknowledgements would wait for ever for a peer that does not read.
type conn struct {
	net.Conn
	timeout time.Duration
}

// Write writes p within the timeout; after an error the connection is useless,
// so it is closed.
func (c conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}

// dialer opens the one connection of a client and can cut it.
type dialer struct {
	ctx     context.Context //nolint:containedctx // paho's hook for dialing has none; this is Dial's
	addr    string
	conf    *tls.Config // nil: plain
	timeout time.Duration
	open    atomic.Pointer[conn]
}

func (d *dialer) dial() (net.Conn, error) {
	raw, err := (&net.Dialer{}).DialContext(d.ctx, "tcp", d.addr)
	if err != nil {
		return nil, err
	}
	if d.conf != nil {
		secure := tls.Client(raw, d.conf)
		if err := secure.HandshakeContext(d.ctx); err != nil {
			_ = raw.Close()
			return nil, err
		}
		raw = secure
	}
	c := &conn{Conn: raw, timeout: d.timeout}
	d.open.Store(c)
	if err := d.ctx.Err(); err != nil { // cut may have come just before
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// cut closes the connection, if there is one.
func (d *dialer) cut() {
	if c := d.open.Load(); c != nil {
		_ = c.Close()
	}
}
