package logs

import "sync/atomic"

// feedSize is how many lines wait for the sender.
const feedSize = 512

// feed carries lines to the one who follows. What does not fit is counted.
type feed struct {
	lines chan line
	lost  atomic.Int64
}

func newFeed() *feed { return &feed{lines: make(chan line, feedSize)} }

func (f *feed) put(l line) {
	select {
	case f.lines <- l:
	default:
		f.lost.Add(1)
	}
}
