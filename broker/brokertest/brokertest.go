// Package brokertest runs the real broker for tests of other packages.
package brokertest

import (
	"context"
	"sync"
	"testing"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// Server is a running broker.
type Server struct {
	*broker.Broker
	URL string // tcp://127.0.0.1:port
}

// Start runs a broker on a free port of 127.0.0.1 until the test ends. Changes
// edit its configuration first.
func Start(t testing.TB, auth broker.Authorizer, in broker.Ingest, changes ...func(*broker.Config)) *Server {
	t.Helper()
	cfg := broker.Config{Addr: "127.0.0.1:0", MaxClients: 4096}
	for _, change := range changes {
		change(&cfg)
	}
	b, err := broker.New(cfg)
	if err != nil {
		t.Fatalf("start the broker: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Serve(ctx, auth, in) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("stop the broker: %v", err)
		}
	})
	return &Server{Broker: b, URL: "tcp://" + b.Addr().String()}
}

// Logins is an Authorizer by password: the key is the password, the value what
// it grants. A device grant with an empty ID fits any device.
type Logins map[string]broker.Grant

// Authorize implements broker.Authorizer.
func (a Logins) Authorize(_ context.Context, l broker.Login) (broker.Grant, error) {
	g, ok := a[string(l.Password)]
	if !ok {
		return broker.Grant{}, fleet.Errorf(fleet.CodeUnauthorized, "no login of %s has this password", l.Username)
	}
	if g.Role == broker.RoleDevice && g.ID == "" {
		g.ID = l.Username
	}
	return g, nil
}

// Message is what an Inbox received.
type Message struct {
	Topic   string
	Payload string
}

// Inbox is an Ingest that keeps what it receives.
type Inbox struct {
	mu   sync.Mutex
	all  []Message
	more chan struct{} // closed and replaced at each message
}

// Receive implements broker.Ingest.
func (i *Inbox) Receive(topic string, payload []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.all = append(i.all, Message{Topic: topic, Payload: string(payload)})
	if i.more != nil {
		close(i.more)
		i.more = nil
	}
}

// All returns everything received so far, in order.
func (i *Inbox) All() []Message {
	i.mu.Lock()
	defer i.mu.Unlock()
	return append([]Message(nil), i.all...)
}

// Wait returns the first message on topic, waiting for it until ctx ends.
func (i *Inbox) Wait(ctx context.Context, topic string) (Message, error) {
	for seen := 0; ; {
		i.mu.Lock()
		for _, m := range i.all[seen:] {
			if m.Topic == topic {
				i.mu.Unlock()
				return m, nil
			}
		}
		seen = len(i.all)
		if i.more == nil {
			i.more = make(chan struct{})
		}
		more := i.more
		i.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return Message{}, ctx.Err()
		}
	}
}
