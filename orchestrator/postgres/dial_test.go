package postgres

import (
	"net"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kernexhq/kernex/pkg/fleet"
)

func TestBrokenConnectionStringIsRefusedAtOnceAndNotQuoted(t *testing.T) {
	t.Parallel()
	for _, dsn := range []string{
		"postgres://kernex:hunter2%zz@db/kernex", "postgres://kernex:hunter2#x@db/kernex", "postgres://kernex:hunter2 x@db:y/kernex",
		"host=db password=a hunter2", "host=db password='hunter2", "postgres://kernex:hunter2@db/kernex?sslmode=maybe",
	} {
		_, err := Open(t.Context(), dsn, 1)
		if fleet.ErrorCode(err) != fleet.CodeInvalid || Away(err) || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "connect to Postgres") {
			t.Errorf("%s: %v (waiting mends it: %v)", dsn, err, Away(err))
		}
	}
}

func TestConnectionsEndWhenTheServerIsGone(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := newDialer().DialTimeout("tcp", l.Addr().String(), silence)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ms, keep int
	if cerr := raw.Control(func(fd uintptr) {
		if ms, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT); err == nil {
			keep, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE)
		}
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	if ms != int(silence.Milliseconds()) || keep == 0 {
		t.Fatalf("the kernel waits %d ms for an acknowledgement (keepalive %d), want %v", ms, keep, silence)
	}
}
