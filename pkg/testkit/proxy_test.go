package testkit_test

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/testkit"
)

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// say sends s and reads as many bytes back within the time.
func say(c net.Conn, s string, within time.Duration) (string, error) {
	if _, err := io.WriteString(c, s); err != nil {
		return "", err
	}
	return hear(c, len(s), within)
}

func hear(c net.Conn, n int, within time.Duration) (string, error) {
	if err := c.SetReadDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	buf := make([]byte, n)
	got, err := io.ReadFull(c, buf)
	return string(buf[:got]), err
}

func TestTheProxyCutsConnectionsAndNewOnesWork(t *testing.T) {
	t.Parallel()
	p := testkit.NewProxy(t, echo(t))
	c := dial(t, p.Addr())
	if got, err := say(c, "hello", time.Minute); got != "hello" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	p.Cut()
	if _, err := hear(c, 1, time.Minute); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the cut: %v", err)
	}
	if got, err := say(dial(t, p.Addr()), "again", time.Minute); got != "again" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if p.Opened() != 2 {
		t.Errorf("%d connections", p.Opened())
	}
}

func TestTheProxyRefusesUntilRestored(t *testing.T) {
	t.Parallel()
	p := testkit.NewProxy(t, echo(t))
	p.Refuse()
	if c, err := net.Dial("tcp", p.Addr()); err == nil {
		if _, err := say(c, "x", time.Minute); err == nil {
			t.Error("a refused connection answers")
		}
		_ = c.Close()
	}
	p.Restore()
	if got, err := say(dial(t, p.Addr()), "again", time.Minute); got != "again" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestABlackholeIsSilentAndKeepsWhatWasSent(t *testing.T) {
	t.Parallel()
	p := testkit.NewProxy(t, echo(t))
	c := dial(t, p.Addr())
	p.Blackhole()
	if _, err := say(c, "hello", 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("in the dark: %v", err)
	}
	p.Restore()
	if got, err := hear(c, 5, time.Minute); got != "hello" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTheProxyCutsAfterABudgetOfBytes(t *testing.T) {
	t.Parallel()
	p := testkit.NewProxy(t, echo(t))
	p.CutAfter(7)
	c := dial(t, p.Addr())
	got, err := say(c, "0123456789", time.Minute)
	if err == nil || len(got) > 7 {
		t.Errorf("%q, %v", got, err)
	}
}

func TestTheProxyDelays(t *testing.T) {
	t.Parallel()
	p := testkit.NewProxy(t, echo(t))
	p.Delay(40 * time.Millisecond)
	begin := time.Now()
	if got, err := say(dial(t, p.Addr()), "hello", time.Minute); got != "hello" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if took := time.Since(begin); took < 80*time.Millisecond { // there and back
		t.Errorf("took %v", took)
	}
}

func TestTheClockMovesOnlyByHand(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	c := testkit.NewClock(at)
	if !c.Now().Equal(at) || !c.Advance(time.Hour).Equal(at.Add(time.Hour)) || !c.Now().Equal(at.Add(time.Hour)) {
		t.Errorf("the clock shows %v", c.Now())
	}
	c.Set(at)
	if !c.Now().Equal(at) {
		t.Errorf("the clock shows %v", c.Now())
	}
}

func TestALoggerMayBeUsedAfterItsTest(t *testing.T) {
	t.Parallel()
	var late func()
	t.Run("inner", func(t *testing.T) {
		log := testkit.Logger(t)
		late = func() { log.Info().Msg("late") }
		late()
	})
	late()
}
