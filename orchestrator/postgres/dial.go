package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// silence is how long a server may be gone without a word before its
// connections end. The driver waits for an answer whatever becomes of the
// context, and the kernel alone gives up on a peer that acknowledges nothing
// after a quarter of an hour: until then a failover would stop every loop. A
// server that only takes long acknowledges, and is waited for.
const silence = 20 * time.Second

// dialer makes connections to Postgres that notice when the server is gone.
type dialer struct{ net.Dialer }

func newDialer() *dialer {
	return &dialer{net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence / 4, Interval: silence / 4, Count: 3},
		Control: func(network, _ string, raw syscall.RawConn) error {
			if !strings.HasPrefix(network, "tcp") {
				return nil
			}
			var err error
			if cerr := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
			}); cerr != nil || err != nil {
				return fmt.Errorf("bound the silence of Postgres: %w", errors.Join(cerr, err))
			}
			return nil
		},
	}}
}

// DialTimeout implements pq.Dialer.
func (d *dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}
