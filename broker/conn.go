package broker

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// conn is a client's connection. Mochi sets one deadline for both directions
// at each packet it reads, and only logs an error of its write loop; so reads
// and writes get deadlines of their own here, and a failed write ends the
// connection at once.
type conn struct {
	net.Conn              // TLS or plain
	raw          net.Conn // the socket below
	writeTimeout time.Duration
	writing      atomic.Int64 // Unix nanoseconds at which the write in progress began; 0: none
	session      atomic.Pointer[session]

	leaveQueue sync.Once // gives back the place among the sockets before CONNECT
	onConnect  func()
}

// SetDeadline moves the read deadline only.
func (c *conn) SetDeadline(t time.Time) error { return c.Conn.SetReadDeadline(t) }

// Write writes p within the write timeout or closes the connection.
func (c *conn) Write(p []byte) (int, error) {
	now := time.Now()
	c.writing.Store(now.UnixNano())
	_ = c.Conn.SetWriteDeadline(now.Add(c.writeTimeout)) // fails on a closed socket only, and then so does Write
	n, err := c.Conn.Write(p)
	c.writing.Store(0)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}

// Close closes the socket without a TLS goodbye, which could wait for a peer
// that does not read.
func (c *conn) Close() error { return c.raw.Close() }

// stuck reports whether a write has been waiting for longer than limit.
func (c *conn) stuck(now time.Time, limit time.Duration) bool {
	began := c.writing.Load()
	return began != 0 && now.UnixNano()-began > int64(limit)
}

// connected says that CONNECT has arrived.
func (c *conn) connected() { c.leaveQueue.Do(c.onConnect) }
