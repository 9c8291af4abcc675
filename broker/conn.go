package broker

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn is a client's connection. Mochi sets one deadline for both directions
// at each packet it reads, and only logs an error of its write loop; so only
// reads get that deadline, and a failed write ends the connection at once.
type conn struct {
	net.Conn         // TLS or the socket itself
	socket   *socket // the socket below
	session  atomic.Pointer[session]

	leaveQueue sync.Once // gives back the place among the sockets before CONNECT
	onConnect  func()
}

// SetDeadline moves the read deadline only.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// Write writes p or closes the connection.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}

// Close closes the socket without a TLS goodbye, which could wait for a peer
// that does not read.
func (c *conn) Close() error { return c.socket.Close() }

// connected says that CONNECT has arrived.
func (c *conn) connected() { c.leaveQueue.Do(c.onConnect) }
