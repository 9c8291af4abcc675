package fieldtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// space is a network namespace. Functions run in it on a thread of its own, and
// so do the programs that they start.
type space struct{ do func(func() error) error }

func newSpace(t *testing.T) space {
	t.Helper()
	calls, made := make(chan func(), 1), make(chan error, 1)
	var thread sync.WaitGroup
	thread.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		made <- err
		for call := range calls {
			call()
		}
	})
	if err := <-made; err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() { close(calls); thread.Wait() })
	s := space{func(f func() error) error {
		done := make(chan error, 1)
		calls <- func() { done <- f() }
		return <-done
	}}
	if err := s.do(func() error { return command("ip", "link", "set", "lo", "up") }); err != nil {
		t.Fatal(err)
	}
	return s
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, out)
	}
	return nil
}

// plug gives the namespace a network interface that this process is the cable
// of.
func (s space) plug(address string) (*os.File, error) {
	var f *os.File
	return f, s.do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq("cable")
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			_ = unix.Close(fd)
			return fmt.Errorf("make a network interface: %w", err)
		}
		f = os.NewFile(uintptr(fd), "cable")
		if err := command("ip", "addr", "add", address, "dev", "cable"); err != nil {
			return err
		}
		return command("ip", "link", "set", "cable", "mtu", "1400", "up")
	})
}

// quality is what a cable does to packets, the same in both directions.
type quality struct {
	loss  float64       // share of packets that vanish
	delay time.Duration // one way
	rate  int64         // bytes a second, headers included; 0: no limit
}

// maxQueue is how long a packet waits at most before a slow link: modems keep
// seconds' worth. Later ones are dropped.
const maxQueue = 4 * time.Second

// cable connects two namespaces. It works on packets, so that retransmission,
// congestion and timeouts are the kernel's own.
type cable struct {
	quality      atomic.Pointer[quality]
	pulled       atomic.Bool // nothing passes
	passed, lost atomic.Int64
	ends         [2]*os.File
	spaces       [2]space
	forwarding   sync.WaitGroup
	gone         chan struct{} // closed at the end of the test
}

const (
	serverIP = "10.9.0.1"
	deviceIP = "10.9.0.2"
)

// newCable connects a server's and a device's namespace.
func newCable(t *testing.T, seed uint64) *cable {
	t.Helper()
	c := &cable{gone: make(chan struct{})}
	c.quality.Store(&quality{})
	for i, ip := range []string{serverIP, deviceIP} {
		c.spaces[i] = newSpace(t)
		end, err := c.spaces[i].plug(ip + "/24")
		if err != nil {
			t.Fatal(err)
		}
		c.ends[i] = end
	}
	for i := range c.ends {
		random := rand.New(rand.NewPCG(seed, uint64(i))) //nolint:gosec // replayable
		late := make(chan packet, 4096)
		c.forwarding.Go(func() { c.read(c.ends[i], late, random) })
		c.forwarding.Go(func() { c.write(c.ends[1-i], late) })
	}
	t.Cleanup(func() {
		close(c.gone)
		for _, end := range c.ends {
			_ = end.Close()
		}
		c.forwarding.Wait()
	})
	return c
}

// packet is on its way.
type packet struct {
	data []byte
	at   time.Time // when it arrives
}

// read takes packets from one end until it is closed.
func (c *cable) read(end *os.File, late chan<- packet, random *rand.Rand) {
	defer close(late)
	var free time.Time // when the slow part of the link has sent what it holds
	for buf := make([]byte, 2048); ; {
		n, err := end.Read(buf)
		if err != nil {
			return
		}
		q, now := c.quality.Load(), time.Now()
		if free.Before(now) {
			free = now
		}
		if c.pulled.Load() || random.Float64() < q.loss || free.Sub(now) > maxQueue || len(late) == cap(late) {
			c.lost.Add(1)
			continue
		}
		c.passed.Add(1)
		if q.rate > 0 {
			free = free.Add(time.Duration(n) * time.Second / time.Duration(q.rate))
		}
		late <- packet{append([]byte(nil), buf[:n]...), free.Add(q.delay)}
	}
}

// write hands packets over when their time has come.
func (c *cable) write(end *os.File, late <-chan packet) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for p := range late {
		if d := time.Until(p.at); d > 0 {
			timer.Reset(d)
			select {
			case <-timer.C:
			case <-c.gone:
			}
		}
		_, _ = end.Write(p.data) // an interface that is going down takes none
	}
}
