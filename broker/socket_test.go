package broker

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"
)

// pair returns a socket and its peer, which reads only when the test does.
func pair(t *testing.T, timeout time.Duration) (*socket, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := &socket{Conn: c, timeout: timeout}
	t.Cleanup(func() {
		_ = peer.Close()
		_ = s.Close()
		s.flusher.Wait()
	})
	return s, peer
}

func TestASocketDeliversEverythingInOrderToAPeerThatPauses(t *testing.T) {
	t.Parallel()
	s, peer := pair(t, 10*time.Second)
	var sent bytes.Buffer
	for i := 0; !s.behind(); i++ {
		chunk := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 4096)
		sent.Write(chunk)
		if n, err := s.Write(chunk); n != len(chunk) || err != nil {
			t.Fatalf("write %d: %d, %v", i, n, err)
		}
	}
	got := make([]byte, sent.Len())
	if _, err := io.ReadFull(peer, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, sent.Bytes()) {
		t.Error("the bytes are not those that were written")
	}
	if !s.drain(nil) || s.behind() {
		t.Error("something still waits")
	}
	if _, err := s.Write([]byte("after")); err != nil {
		t.Error(err)
	}
}

func TestASocketIsClosedWhenItsPeerNeverReads(t *testing.T) {
	t.Parallel()
	t.Run("too much waits", func(t *testing.T) {
		t.Parallel()
		s, _ := pair(t, time.Minute)
		written := 0
		for {
			n, err := s.Write(make([]byte, 64<<10))
			if err != nil {
				break
			}
			if written += n; written > 64<<20 {
				t.Fatal("64 MiB were taken")
			}
		}
		if _, err := s.Conn.Write([]byte("x")); err == nil {
			t.Error("the socket is open")
		}
	})
	t.Run("too long", func(t *testing.T) {
		t.Parallel()
		s, _ := pair(t, 100*time.Millisecond)
		for !s.behind() {
			if _, err := s.Write(make([]byte, 64<<10)); err != nil {
				t.Fatal(err)
			}
		}
		if !s.drain(nil) {
			t.Fatal("not drained")
		}
		if _, err := s.Write([]byte("x")); err == nil {
			t.Error("the socket is open")
		}
	})
}
