package broker

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/mochi-mqtt/server/v2/listeners"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// listener accepts connections for mochi. Unlike mochi's own it goes on after
// an accept error such as "too many open files", bounds the time to CONNECT and
// the sockets that wait for it, and contains a panic to its connection.
type listener struct {
	b   *Broker
	ins []inlet

	mu      sync.Mutex
	conns   map[*conn]struct{}
	waiting map[netip.Addr]int // sockets before CONNECT by address
	closed  bool
	wg      sync.WaitGroup // accept loops and connections
}

// inlet is one address; the bounds are for all of them together.
type inlet struct {
	net.Listener
	tls *tls.Config // nil: plain
}

const listenerID = "kernex"

func newListener(b *Broker, ins []inlet) *listener {
	return &listener{b: b, ins: ins, conns: make(map[*conn]struct{}), waiting: make(map[netip.Addr]int)}
}

// listen opens every address or none.
func listen(all []Listen) (ins []inlet, err error) {
	for _, one := range all {
		in, err := net.Listen("tcp", one.Addr)
		if err != nil {
			for _, open := range ins {
				_ = open.Close()
			}
			return nil, fleet.Wrap(fleet.CodeUnavailable, err, "the broker cannot listen on "+one.Addr)
		}
		ins = append(ins, inlet{Listener: in, tls: one.TLS})
	}
	return ins, nil
}

// The methods of listeners.Listener.

func (l *listener) Init(*slog.Logger) error { return nil }
func (l *listener) ID() string              { return listenerID }
func (l *listener) Address() string         { return l.ins[0].Addr().String() }
func (l *listener) Protocol() string        { return "mqtt" }

// Serve accepts on every address until the listener is closed.
func (l *listener) Serve(establish listeners.EstablishFn) {
	var all sync.WaitGroup
	for _, in := range l.ins {
		all.Go(func() { l.accept(in, establish) })
	}
	all.Wait()
}

func (l *listener) accept(in inlet, establish listeners.EstablishFn) {
	if !l.start() {
		return
	}
	defer l.wg.Done()
	pause := time.Duration(0)
	for {
		raw, err := in.Accept()
		if err == nil {
			pause = 0
			l.take(raw, in.tls, establish)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		l.b.metrics.refuse(reasonAccept)
		l.b.log.Warn().Err(err).Dur("pause", pause).Msg("accept failed")
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-l.b.stopping:
			timer.Stop()
			return
		}
	}
}

// start counts an accept loop in, unless the listener is closed.
func (l *listener) start() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.wg.Add(1)
	return true
}

// take starts serving a socket or closes it when there is no room.
func (l *listener) take(raw net.Conn, secure *tls.Config, establish listeners.EstablishFn) {
	addr := remoteAddr(raw)
	sock := &socket{Conn: raw, timeout: l.b.cfg.WriteTimeout}
	c := &conn{Conn: sock, socket: sock}
	c.onConnect = func() { l.leave(addr) }
	if secure != nil {
		c.Conn = tls.Server(sock, secure)
	}
	l.mu.Lock()
	why := ""
	switch {
	case l.closed:
		why = reasonClosing
	case len(l.conns) >= l.b.cfg.MaxClients:
		why = reasonFull
	case l.waiting[addr] >= l.b.cfg.MaxWaiting:
		why = reasonWaiting
	default:
		l.conns[c] = struct{}{}
		l.waiting[addr]++
		l.wg.Add(1)
	}
	l.mu.Unlock()
	if why != "" {
		l.b.metrics.refuse(why)
		_ = raw.Close()
		return
	}
	l.b.metrics.accepted.Inc()
	// One deadline for all of TLS and CONNECT, so that a byte now and then buys
	// no time.
	_ = raw.SetReadDeadline(time.Now().Add(l.b.cfg.ConnectTimeout))
	go l.serve(c, establish)
}

// serve runs one connection to its end.
func (l *listener) serve(c *conn, establish listeners.EstablishFn) {
	defer l.wg.Done()
	err := contain(func() error { return establish(listenerID, c) })
	_ = c.Close()
	c.socket.flusher.Wait()
	c.connected()
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
	l.b.ended(c, err)
}

// leave gives back an address's place among the sockets before CONNECT.
func (l *listener) leave(addr netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[addr]--; l.waiting[addr] <= 0 {
		delete(l.waiting, addr)
	}
}

// Close stops accepting and closes every socket. Mochi's own way writes a
// goodbye to one client after the other, each for as long as that client likes
// not to read.
func (l *listener) Close(listeners.CloseFn) {
	l.mu.Lock()
	l.closed = true
	for _, in := range l.ins {
		_ = in.Close()
	}
	for c := range l.conns {
		_ = c.Close()
	}
	l.mu.Unlock()
	l.wg.Wait()
}

// panicked is what a panic while serving a connection becomes.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return "panic while serving a connection" }

// contain turns a panic of f into an error: a packet that mochi's decoder does
// not survive must not end the process for everyone else.
func contain(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &panicked{value: v, stack: debug.Stack()}
		}
	}()
	return f()
}

// remoteAddr is the address that limits count by: an IPv4 address, or the /64
// that an IPv6 host can move in as it likes.
func remoteAddr(c net.Conn) netip.Addr {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}
