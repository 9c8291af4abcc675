package looptest

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/testkit"
)

// Message is one that was published.
type Message struct {
	Topic   string
	Payload []byte
	QoS     byte
	Retain  bool
}

// Wire records what is published, in order.
type Wire struct {
	mu   sync.Mutex
	all  []Message
	hook func(Message)
	err  error
}

// NewWire makes an empty wire.
func NewWire() *Wire { return &Wire{} }

// Publish records a message, and hands it to whoever follows.
func (w *Wire) Publish(_ context.Context, topic string, payload []byte, qos byte, retain bool) error {
	m := Message{topic, payload, qos, retain}
	w.mu.Lock()
	err, hook := w.err, w.hook
	if err == nil {
		w.all = append(w.all, m)
	}
	w.mu.Unlock()
	if err == nil && hook != nil {
		hook(m)
	}
	return err
}

// Follow calls f, which must not block, with each message from now on.
func (w *Wire) Follow(f func(Message)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hook = f
}

// Break makes every Publish fail with err until it is nil again.
func (w *Wire) Break(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

// All returns every message so far.
func (w *Wire) All() []Message {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

// On returns the messages of one topic so far.
func (w *Wire) On(topic string) []Message {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Message
	for _, m := range w.all {
		if m.Topic == topic {
			out = append(out, m)
		}
	}
	return out
}

// Await waits until n messages have come on a topic and returns them.
func (w *Wire) Await(t testing.TB, topic string, n int) []Message {
	t.Helper()
	var got []Message
	testkit.Eventually(t, 10*time.Second, func() bool {
		got = w.On(topic)
		return len(got) >= n
	})
	return got
}

// Decode reads a message's payload.
func Decode[T any](t testing.TB, m Message) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(m.Payload, &v); err != nil {
		t.Fatalf("decode %s: %v", m.Topic, err)
	}
	return v
}
