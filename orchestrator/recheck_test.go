package orchestrator

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// holder is the broker with one device's connection.
type holder struct {
	device string
	looks  chan bool // does the grant hold
}

func (holder) Publish(context.Context, string, []byte, byte, bool) error { return nil }
func (holder) Kick(string)                                               {}
func (h holder) Recheck(holds func(device bool, id string, epoch int64) bool) {
	h.looks <- holds(true, h.device, 0)
}

func TestDeletedDeviceIsDisconnectedWithoutANotification(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	h := holder{s.Device(), make(chan bool)}
	o := &Orchestrator{db: s.DB, transport: h, log: testkit.Logger(t)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- o.recheck(ctx) }()
	if !<-h.looks {
		t.Fatal("the device's grant does not hold")
	}
	if err := s.DB.DeleteDevice(t.Context(), h.device, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	o.kick("") // the way to the notifications was gone
	select {
	case holds := <-h.looks:
		if holds {
			t.Error("a deleted device stays connected")
		}
	case <-time.After(20 * time.Second):
		t.Error(errors.New("nobody looks"))
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}
