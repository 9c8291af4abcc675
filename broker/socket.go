package broker

import (
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Bounds of what waits for a peer that does not read.
const (
	patience   = 20 * time.Millisecond // a write may take its caller this long
	behindAt   = 64 << 10              // bytes waiting from which no message is added
	maxBacklog = 1 << 20               // bytes waiting from which the connection is closed
	flushPiece = 16 << 10              // bytes that the peer must take within the timeout
)

// socket is a TCP connection whose Write does not wait for the peer. Mochi
// writes while it holds the client's lock, and whoever publishes a QoS 1
// message to that client needs the lock: one peer that stops reading would stop
// every publisher. So what the kernel does not take at once waits here, and is
// written by a goroutine that lives as long as something waits.
type socket struct {
	net.Conn
	timeout time.Duration // for one piece of the backlog

	mu      sync.Mutex
	backlog []byte
	drained chan struct{} // closed when the backlog is written or lost; nil: nothing waits
	waiting atomic.Int64  // bytes, those being written included
	flusher sync.WaitGroup
}

// Write takes all of p or closes the connection.
func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drained != nil {
		return s.queue(p)
	}
	_ = s.SetWriteDeadline(time.Now().Add(patience)) // fails on a closed socket only, and then so does Write
	n, err := s.Conn.Write(p)
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, os.ErrDeadlineExceeded):
		_ = s.Close()
		return n, err
	}
	s.drained = make(chan struct{})
	if _, err := s.queue(p[n:]); err != nil {
		close(s.drained)
		return n, err
	}
	s.flusher.Go(s.flush)
	return len(p), nil
}

// queue adds p to the backlog; s.mu is held.
func (s *socket) queue(p []byte) (int, error) {
	if s.waiting.Load()+int64(len(p)) > maxBacklog {
		_ = s.Close()
		return 0, fleet.Errorf(fleet.CodeUnavailable, "the peer does not read and %d bytes wait for it", s.waiting.Load())
	}
	s.backlog = append(s.backlog, p...)
	s.waiting.Add(int64(len(p)))
	return len(p), nil
}

// flush writes the backlog until nothing waits. A failed write closes the
// connection; everything after that is lost with it.
func (s *socket) flush() {
	for {
		s.mu.Lock()
		next := s.backlog
		s.backlog = nil
		if len(next) == 0 {
			close(s.drained)
			s.drained = nil
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for piece := range slices.Chunk(next, flushPiece) {
			_ = s.SetWriteDeadline(time.Now().Add(s.timeout))
			_, err := s.Conn.Write(piece)
			s.waiting.Add(-int64(len(piece)))
			if err != nil {
				_ = s.Close()
			}
		}
	}
}

// behind reports whether so much waits that messages should rather be dropped.
func (s *socket) behind() bool { return s.waiting.Load() >= behindAt }

// drain waits until nothing waits for the peer, or until stop.
func (s *socket) drain(stop <-chan struct{}) bool {
	s.mu.Lock()
	drained := s.drained
	s.mu.Unlock()
	if drained == nil {
		return true
	}
	select {
	case <-drained:
		return true
	case <-stop:
		return false
	}
}
