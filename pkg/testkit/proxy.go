package testkit

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy stands between a client and a server and breaks the TCP connection on
// request. Faults apply to open connections and to new ones until Restore.
type Proxy struct {
	target   string
	listener net.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a fault changes
	refuse  bool
	hole    bool
	delay   time.Duration
	limit   int64 // bytes that may still pass to clients; -1: no limit
	conns   map[net.Conn]struct{}
	opened  int
	passed  [2]int64 // bytes to servers and to clients
}

// NewProxy listens on a free port of 127.0.0.1 and forwards to target until the
// test ends.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("start the fault proxy: %v", err)
	}
	return ProxyOn(t, l, target)
}

// ProxyOn is NewProxy with a listener of the test's own, which it closes.
func ProxyOn(t testing.TB, l net.Listener, target string) *Proxy {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Proxy{target: target, listener: l, ctx: ctx, cancel: cancel, limit: -1,
		changed: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	p.wg.Add(1)
	go p.accept()
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// Addr returns the address that clients connect to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Opened counts the connections accepted so far, refused ones included.
func (p *Proxy) Opened() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened
}

// Passed counts the bytes that were handed on, in each direction.
func (p *Proxy) Passed() (toServers, toClients int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.passed[0], p.passed[1]
}

// Cut resets every open connection; new ones work.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		reset(c)
	}
}

// Refuse resets every open connection and each new one at once.
func (p *Proxy) Refuse() {
	p.set(func() { p.refuse = true })
	p.Cut()
}

// Blackhole keeps connections open but lets nothing pass in either direction,
// like a cable that was pulled: neither side learns of it. What was held back
// passes after Restore, as TCP would send it again.
func (p *Proxy) Blackhole() { p.set(func() { p.hole = true }) }

// Delay holds each chunk for d in each direction.
func (p *Proxy) Delay(d time.Duration) { p.set(func() { p.delay = d }) }

// CutAfter lets n more bytes pass to clients, of all connections together, and
// then resets each connection that would pass more.
func (p *Proxy) CutAfter(n int64) { p.set(func() { p.limit = n }) }

// Restore ends all faults; connections that were reset stay so.
func (p *Proxy) Restore() {
	p.set(func() { p.refuse, p.hole, p.delay, p.limit = false, false, 0, -1 })
}

func (p *Proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) accept() {
	defer p.wg.Done()
	for {
		client, err := p.listener.Accept()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			continue
		}
		p.mu.Lock()
		p.opened++
		refused := p.refuse || p.ctx.Err() != nil
		if !refused {
			p.conns[client] = struct{}{}
		}
		p.mu.Unlock()
		if refused {
			reset(client)
			continue
		}
		p.wg.Add(1)
		go p.serve(client)
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer p.wg.Done()
	defer p.forget(client)
	var d net.Dialer
	server, err := d.DialContext(p.ctx, "tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	p.mu.Lock()
	p.conns[server] = struct{}{}
	p.mu.Unlock()
	defer p.forget(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.copy(server, client, false)
	}()
	p.copy(client, server, true)
	<-done
}

func (p *Proxy) forget(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// copy forwards until one side ends. An orderly end is passed on as one; any
// fault resets both sides.
func (p *Proxy) copy(dst, src net.Conn, toClient bool) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			allowed, ok := p.pass(int64(n), toClient)
			if allowed > 0 {
				w, werr := dst.Write(buf[:allowed])
				p.count(int64(w), toClient)
				if werr != nil {
					ok = false
				}
			}
			if !ok {
				reset(src)
				reset(dst)
				return
			}
		}
		if errors.Is(err, io.EOF) {
			if _, ok := p.pass(0, toClient); ok { // a pulled cable carries no FIN either
				if c, ok := dst.(*net.TCPConn); ok {
					_ = c.CloseWrite()
				}
			}
			return
		}
		if err != nil {
			reset(src)
			reset(dst)
			return
		}
	}
}

func (p *Proxy) count(n int64, toClient bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if toClient {
		p.passed[1] += n
	} else {
		p.passed[0] += n
	}
}

// pass waits as the faults demand and says how many of n bytes may go on; not
// ok means that the connection must be reset afterwards.
func (p *Proxy) pass(n int64, toClient bool) (allowed int64, ok bool) {
	p.mu.Lock()
	delay := p.delay
	p.mu.Unlock()
	if delay > 0 {
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-p.ctx.Done():
			timer.Stop()
			return 0, false
		}
	}
	for {
		p.mu.Lock()
		if !p.hole {
			allowed = n
			if toClient && p.limit >= 0 {
				allowed = min(n, p.limit)
				p.limit -= allowed
			}
			p.mu.Unlock()
			return allowed, allowed == n
		}
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-p.ctx.Done():
			return 0, false
		}
	}
}

// reset closes with RST instead of FIN, as a crash or a firewall would.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
