package fieldtest

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n))) //nolint:gosec // incompressible, and always the same
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// site is a device on a cable, with broker and object store at the other end.
type site struct {
	*server
	cable    *cable
	mqtt     *testkit.Proxy
	http     *testkit.Proxy
	requests atomic.Int64
	origin   *httptest.Server
	data     atomic.Pointer[[]byte]
	flipped  atomic.Int64
	agent    *lastLines
	flip     int64 // one bit in so many bytes; 0: none
	sent     int64 // of bodies; a handler at a time
}

// newSite starts the agent and waits until it has connected, by a perfect cable.
func newSite(t *testing.T, stall time.Duration) *site {
	t.Helper()
	s := &site{server: newServer(t), cable: newCable(t, 1)}
	s.origin = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.origin.Close)
	s.mqtt = s.expose(strings.TrimPrefix(s.broker.URL, "tcp://"))
	s.http = s.expose(strings.TrimPrefix(s.origin.URL, "http://"))
	out := &lastLines{}
	s.agent = out
	cmd := exec.Command("/proc/self/exe", agentCommand, t.TempDir(), "tcp://"+s.mqtt.Addr(), stall.String())
	cmd.Stderr, cmd.WaitDelay = out, time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cable.spaces[1].do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if t.Failed() {
			t.Logf("the agent's last words:\n%s", out)
		}
	})
	s.await("the device", 30*time.Second, func() bool { return s.births > 0 })
	return s
}

// expose makes a server reachable from the device, through a fault proxy. What
// the proxy has handed on counts as downloaded, so little of it may wait in the
// kernel when a connection is cut.
func (s *site) expose(target string) *testkit.Proxy {
	var l net.Listener
	err := s.cable.spaces[0].do(func() (err error) {
		l, err = net.Listen("tcp", serverIP+":0")
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return testkit.ProxyOn(s.t, narrow{l}, target)
}

type narrow struct{ net.Listener }

func (n narrow) Accept() (net.Conn, error) {
	c, err := n.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetWriteBuffer(4 << 10) // else the counts are coarser
	}
	return c, err
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	if s.flip > 0 {
		w = flipper{w, s}
	}
	w.Header().Set("ETag", `"e"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(*s.data.Load()))
}

// flipper flips a bit of each byte of bodies whose number is divisible by flip.
type flipper struct {
	http.ResponseWriter
	site *site
}

func (f flipper) Write(p []byte) (int, error) {
	begin := f.site.sent
	f.site.sent += int64(len(p))
	p = bytes.Clone(p)
	for at := (begin/f.site.flip + 1) * f.site.flip; at < f.site.sent; at += f.site.flip {
		p[at-begin] ^= 16
		f.site.flipped.Add(1)
	}
	return f.ResponseWriter.Write(p)
}

// lastLines keeps the end of what an agent says.
type lastLines struct {
	mu  sync.Mutex
	buf []byte
}

func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	l.buf = l.buf[max(0, len(l.buf)-64<<10):]
	return len(p), nil
}

func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf)
}

// animal is one kind of bad link.
type animal struct {
	name        string
	quality     quality
	size        int           // of the bundle in the short form
	part        int64         // of its parts in the short form
	limit       time.Duration // of the short form
	flip        int64
	stall       time.Duration
	plague      func(s *site, done <-chan struct{}) (cuts int) // what happens during the download
	interrupted bool                                           // it must have been
}

var zoo = []animal{
	{name: "5% loss", quality: quality{loss: 0.05, delay: 20 * time.Millisecond}, size: 512 << 10, part: 64 << 10, limit: 2 * time.Minute},
	{name: "2 s latency", quality: quality{delay: 2 * time.Second}, size: 24 << 10, part: 8 << 10, limit: 2 * time.Minute},
	{name: "1 KiB per s", quality: quality{rate: 1 << 10, delay: 50 * time.Millisecond}, size: 6 << 10, part: 2 << 10, limit: 2 * time.Minute},
	{name: "cut every 3 s", quality: quality{rate: 48 << 10, delay: 20 * time.Millisecond}, size: 512 << 10, part: 64 << 10, limit: 2 * time.Minute, plague: cutter, interrupted: true},
	{name: "half-open", quality: quality{rate: 64 << 10, delay: 20 * time.Millisecond}, size: 256 << 10, part: 64 << 10, limit: 2 * time.Minute, stall: 3 * time.Second, plague: forget, interrupted: true},
	{name: "bit flips", quality: quality{rate: 256 << 10, delay: 5 * time.Millisecond}, size: 1 << 20, part: 64 << 10, limit: 2 * time.Minute, flip: 300_000, interrupted: true},
}

// cutter resets every connection each 3 s.
func cutter(s *site, done <-chan struct{}) (cuts int) {
	tick := time.NewTicker(3 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.http.Cut()
			s.mqtt.Cut()
			cuts++
		case <-done:
			return cuts
		}
	}
}

// forget makes the server's end forget every connection without a word, three
// times, as a NAT or a rebooted router does, each time in the middle of a
// download.
func forget(s *site, done <-chan struct{}) (cuts int) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-done:
			return cuts
		}
		if _, got := s.http.Passed(); got < int64(cuts+1)*int64(len(*s.data.Load()))/4 {
			continue
		}
		s.cable.pulled.Store(true)
		s.http.Cut()
		s.mqtt.Cut()
		// The resets are lost, and so are the answers to what was on its way, for
		// which the server's end would reset once more.
		rest(time.Second)
		s.cable.pulled.Store(false)
		if cuts++; cuts == 3 {
			<-done
			return cuts
		}
	}
}

func TestABundleArrivesOverEveryLinkOfTheZoo(t *testing.T) {
	t.Parallel()
	for _, a := range zoo {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			a.arrives(t)
		})
	}
}

func (a animal) arrives(t *testing.T) {
	if long {
		a.size, a.limit = 2<<20, time.Hour
		a.part = fleet.PartSize(int64(a.size))
		a.stall = 0
		if a.flip > 0 {
			a.flip = 1_600_000 // a part has to have a chance
		}
	}
	s := newSite(t, a.stall)
	ref, data := s.pack(a.size, a.part)
	s.data.Store(&data)
	s.flip = a.flip
	ref.URL, ref.ETag, ref.URLExpiresAt = "http://"+s.http.Addr()+"/", "e", time.Now().Add(2*time.Hour).Unix()
	s.cable.quality.Store(&a.quality)
	s.cable.passed.Store(0)
	s.cable.lost.Store(0)
	begun := time.Now()
	done, cuts := make(chan struct{}), make(chan int, 1)
	if a.plague == nil {
		cuts <- 0
	} else {
		go func() { cuts <- a.plague(s, done) }()
	}
	id := s.order(protocol.Command{Type: protocol.CommandDeploy, Deploy: &protocol.Deploy{Deployment: "dep-field", Bundle: ref, StepTimeoutS: 300}})
	r := s.ended(id, a.limit)
	close(done)
	cut := <-cuts
	if r.State != fleet.TargetSucceeded {
		t.Fatalf("%+v %+v", r, r.Error)
	}
	requests := s.requests.Load()
	_, got := s.http.Passed()
	twice := s.agent.received(t) - ref.Size
	crossed := max(got-requests*headerBytes-ref.Size, 0) // what was in the kernel's buffers included
	t.Logf("%s: %d KiB in %.1f s, %d requests, %d cuts, %d bits flipped, %d bytes downloaded twice (a part is %d), %d bytes more than the bundle on the link, %d packets passed, %d lost, %d MQTT connections",
		a.name, len(data)>>10, time.Since(begun).Seconds(), requests, cut, s.flipped.Load(), twice, a.part, crossed, s.cable.passed.Load(), s.cable.lost.Load(), s.births)
	if bound := (requests - 1) * a.part; twice > bound || crossed > bound+requests*kernelBytes {
		t.Errorf("%d bytes were downloaded twice, at most %d (a part each interruption) may be; %d on the link", twice, bound, crossed)
	}
	if a.interrupted && requests < 2 {
		t.Error("the download was never interrupted")
	}
	if !a.interrupted && requests > 1 {
		t.Errorf("%d requests, nothing has interrupted it", requests)
	}
}

// About what the head of an answer has, and what the kernel of each side holds
// of a connection when it is cut.
const (
	headerBytes = 250
	kernelBytes = 64 << 10
)

// received returns how many bytes the agent says it has written to its disk.
func (l *lastLines) received(t *testing.T) int64 {
	t.Helper()
	for line := range strings.Lines(l.String()) {
		var said struct {
			Message  string
			Received int64
		}
		if json.Unmarshal([]byte(line), &said) == nil && said.Message == "archive downloaded" {
			return said.Received
		}
	}
	t.Fatal("the agent does not say what it has downloaded")
	return 0
}
