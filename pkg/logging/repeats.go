package logging

import (
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// maxRepeats bounds the messages that one hook remembers: more than a program
// has.
const maxRepeats = 256

// repeats is the hook of WithoutRepeats.
type repeats struct {
	every time.Duration

	mu   sync.Mutex
	seen map[string]*repeat
}

type repeat struct {
	at   time.Time
	more int
}

// WithoutRepeats returns the logger for a part that tries again and again while
// something is away: of warnings and errors with the same message one passes in
// every, and the next one carries how many did not, as "repeated". A logger at
// level debug stays as it is.
func WithoutRepeats(log zerolog.Logger, every time.Duration) zerolog.Logger {
	if log.GetLevel() <= zerolog.DebugLevel {
		return log
	}
	return log.Hook(&repeats{every: every, seen: map[string]*repeat{}})
}

// Run implements zerolog.Hook.
func (r *repeats) Run(e *zerolog.Event, level zerolog.Level, message string) {
	if level != zerolog.WarnLevel && level != zerolog.ErrorLevel {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	m, ok := r.seen[message]
	if !ok {
		if len(r.seen) >= maxRepeats {
			clear(r.seen)
		}
		r.seen[message] = &repeat{at: now}
		return
	}
	if now.Sub(m.at) < r.every {
		m.more++
		e.Discard()
		return
	}
	if m.more > 0 {
		e.Int("repeated", m.more)
	}
	m.at, m.more = now, 0
}
