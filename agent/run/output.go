package run

import (
	"fmt"
	"sync"
)

// How much of a program's output is kept: its start, which says what was
// attempted, and its end, which says why it failed.
const (
	headBytes = 64 << 10
	tailBytes = 192 << 10
)

// output is a writer that keeps the first head and the last tail bytes and
// counts the rest. It is safe for concurrent use.
type output struct {
	headCap, tailCap int

	mu    sync.Mutex
	head  []byte
	tail  []byte // a ring once it is tailCap long
	next  int    // where the ring continues
	total int64
}

func newOutput(head, tail int) *output { return &output{headCap: head, tailCap: tail} }

// Write never fails: a program must not be stopped by its own chatter.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(p)
	o.total += int64(n)
	if room := o.headCap - len(o.head); room > 0 {
		take := min(room, len(p))
		o.head = append(o.head, p[:take]...)
		p = p[take:]
	}
	if len(p) > o.tailCap {
		p = p[len(p)-o.tailCap:]
	}
	if room := o.tailCap - len(o.tail); room > 0 {
		take := min(room, len(p))
		o.tail = append(o.tail, p[:take]...)
		p = p[take:]
	}
	for len(p) > 0 {
		c := copy(o.tail[o.next:], p)
		o.next = (o.next + c) % o.tailCap
		p = p[c:]
	}
	return n, nil
}

// String returns what was kept, with a line that says how much is missing.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	end := string(o.tail[o.next:]) + string(o.tail[:o.next])
	if lost := o.total - int64(len(o.head)+len(o.tail)); lost > 0 {
		return fmt.Sprintf("%s\n[%d bytes left out]\n%s", o.head, lost, end)
	}
	return string(o.head) + end
}
