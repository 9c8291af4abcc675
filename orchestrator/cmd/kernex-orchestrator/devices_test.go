package main

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/mqttclient"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// device speaks the device protocol over the broker: it accepts commands and,
// once released, reports success until an acknowledgement names it.
type device struct {
	s      *site
	id     string
	key    identity.PrivateKey
	client *mqttclient.Client
	free   <-chan struct{} // nil: results go out at once

	mu      sync.Mutex
	results map[string]bool // by command; true: acknowledged
}

// register makes a device that may connect.
func (s *site) register() *device {
	s.t.Helper()
	key, err := identity.Generate(identity.KindEd25519)
	if err != nil {
		s.t.Fatal(err)
	}
	block, _ := pem.Decode(key.Public().PEM())
	der := block.Bytes
	sum := sha256.Sum256(der)
	d, _, err := s.DB.RegisterDevice(s.t.Context(), fleet.Registration{}, der, sum[:], "ed25519", nil, fleet.System)
	if err != nil {
		s.t.Fatal(err)
	}
	return &device{s: s, id: d.ID, key: key, results: map[string]bool{}}
}

func (d *device) dial(t *testing.T) (*mqttclient.Client, error) {
	t.Helper()
	password, err := identity.MintDeviceToken(d.key, d.id, d.s.fleet, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return mqttclient.Dial(ctx, mqttclient.Options{Broker: "tcp://" + d.s.broker.Addr().String(), ClientID: d.id, Username: d.id, Password: password, OnMessage: d.receive})
}

// connect brings the device online.
func (d *device) connect() {
	t := d.s.t
	t.Helper()
	var err error
	if d.client, err = d.dial(t); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.client.Close(context.Background()) })
	for _, k := range []protocol.Kind{protocol.KindCommand, protocol.KindAck} {
		if err := d.client.Subscribe(t.Context(), d.s.Topics.Device(d.id, k), 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.publish(t.Context(), protocol.KindState, looptest.State(1)); err != nil {
		t.Fatal(err)
	}
}

func (d *device) publish(ctx context.Context, k protocol.Kind, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return d.client.Publish(ctx, d.s.Topics.Device(d.id, k), b, 1, false)
}

func (d *device) receive(topic string, payload []byte) {
	kind, _, _ := d.s.Topics.Parse(topic)
	switch kind {
	case protocol.KindCommand:
		var c protocol.Command
		body, err := base64.RawURLEncoding.DecodeString(strings.Split(string(payload), ".")[1])
		if err == nil {
			err = json.Unmarshal(body, &c)
		}
		if err != nil {
			d.s.t.Errorf("command: %v", err)
			return
		}
		d.mu.Lock()
		_, again := d.results[c.ID]
		if !again {
			d.results[c.ID] = false
		}
		d.mu.Unlock()
		if !again {
			go d.work(c.ID)
		}
	case protocol.KindAck:
		var a protocol.Ack
		if err := json.Unmarshal(payload, &a); err != nil {
			d.s.t.Errorf("ack: %v", err)
			return
		}
		d.mu.Lock()
		for _, r := range a.Results {
			if !r.Accepted {
				d.s.t.Errorf("%s: result of %s was refused: %s", d.id, r.Command, r.Code)
			}
			d.results[r.Command] = true
		}
		d.mu.Unlock()
	}
}

// work does one command.
func (d *device) work(command string) {
	ctx := d.s.t.Context()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	_ = d.publish(ctx, protocol.KindResult, protocol.Result{Command: command, Attempt: 1, State: fleet.TargetAccepted}) // best effort, like all progress
	if d.free != nil {
		select {
		case <-d.free:
		case <-ctx.Done():
			return
		}
	}
	for !d.acknowledged(command) {
		_ = d.publish(ctx, protocol.KindResult, protocol.Result{Command: command, Attempt: 1, State: fleet.TargetSucceeded}) // sent again until acknowledged
		select {
		case <-again.C:
		case <-ctx.Done():
			return
		case <-d.client.Done():
			return
		}
	}
}

func (d *device) acknowledged(command string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.results[command]
}

// open is how many results wait for their acknowledgement.
func (d *device) open() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, done := range d.results {
		if !done {
			n++
		}
	}
	return n
}
