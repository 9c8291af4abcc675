package attack

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func TestACopiedDeviceIsQuarantinedUntilAnOperatorReleasesIt(t *testing.T) {
	t.Parallel()
	s := start(t)
	d := s.register(t, "", nil)
	state := func() string {
		var now fleet.Device
		s.call(t, http.MethodGet, "/devices/"+d.id, nil).into(t, http.StatusOK, &now)
		return now.Status
	}
	first := s.birth(t, d, 4, "boot-a")
	second := s.birth(t, d, 4, "boot-b") // the copy has the same journal: the first sign
	if got := first.closed(); got != 0 {
		t.Errorf("the first host is told %#x", got)
	}
	if got := state(); got != "online" {
		t.Fatalf("after one sign the device is %s", got)
	}
	first = s.birth(t, d, 5, "boot-a")
	second.closed()
	second = s.login(t, s.hello(t, d))
	report := protocol.State{Session: 5, Boot: "boot-b", StateRev: 1, Status: "healthy", AgentVersion: "1.0.0", OS: "linux", Arch: "amd64"}
	second.publish(topics.Device(d.id, protocol.KindState), report, 1) // the second
	first.closed()
	eventually(t, func() bool { return state() == "quarantined" })
	second.closed()

	// It may connect, and gets no commands.
	again := s.login(t, s.hello(t, d))
	if code := again.subscribe(topics.Device(d.id, protocol.KindCommand)); code < 0x80 {
		t.Errorf("SUBACK %#x for commands", code)
	}
	if code := again.subscribe(topics.Device(d.id, protocol.KindAck)); code >= 0x80 {
		t.Errorf("SUBACK %#x for acknowledgements", code)
	}
	s.call(t, http.MethodPost, "/devices/"+d.id+"/restart", nil).refused(t, http.StatusConflict, fleet.CodeConflict)
	var log fleet.List[fleet.AuditEntry]
	s.call(t, http.MethodGet, "/audit?action=device.quarantine&subject="+d.id, nil).into(t, http.StatusOK, &log)
	if log.Total != 1 || log.Items[0].Actor != "system" {
		t.Errorf("audit: %+v", log)
	}
	if n := value[int](t, s, `SELECT count(*) FROM events WHERE type = 'kernex.device.credential' AND device_id = $1 AND data->>'reason' = 'clone'`, d.id); n != 1 {
		t.Errorf("%d events", n)
	}

	s.call(t, http.MethodPost, "/devices/"+d.id+"/release", nil).into(t, http.StatusOK, nil)
	again.closed()
	s.birth(t, d, 2, "boot-restored") // from an older disk: whoever comes is the device
	eventually(t, func() bool { return state() == "online" })
}

// TestARevokedDeviceIsDisconnectedWithinASecond revokes 100 devices, each with
// an open connection.
func TestARevokedDeviceIsDisconnectedWithinASecond(t *testing.T) {
	t.Parallel()
	s := start(t)
	const trials = 100
	took := make([]time.Duration, 0, trials)
	for range trials {
		d := s.register(t, "", nil)
		c := s.login(t, s.hello(t, d))
		begin := time.Now()
		s.call(t, http.MethodPost, "/devices/"+d.id+"/revoke", nil).into(t, http.StatusOK, nil)
		c.closed()
		took = append(took, time.Since(begin))
		if code := s.dial(t).connect(s.hello(t, d)); code != unauthorized {
			t.Errorf("CONNACK %d after the revocation", code)
		}
	}
	slices.Sort(took)
	t.Logf("from the call to the closed socket, call included: p50 %v, p99 %v, max %v", took[trials/2], took[trials*99/100], took[trials-1])
	if took[trials-1] > time.Second {
		t.Errorf("the slowest took %v", took[trials-1])
	}
}

// TestHostileSocketsDoNotHoldUpHonestDevices opens 1,000 sockets that are
// silent, announce huge packets or do not read, and measures what honest
// devices get and what memory it costs, the client's side of the sockets
// included.
func TestHostileSocketsDoNotHoldUpHonestDevices(t *testing.T) { //nolint:paralleltest // measures the memory of the process
	s := start(t)
	honest := s.register(t, "", nil)
	line := s.birth(t, honest, 1, "boot-1")
	var slow []*device
	for range 10 {
		slow = append(slow, s.register(t, "", nil))
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what the first one found to finalize
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := heap()
	var sockets []*raw
	for i := range 1000 {
		c := s.dial(t)
		sockets = append(sockets, c)
		switch {
		case i%100 == 0: // logged in, asks for answers and reads none
			d := slow[i/100]
			c.send(s.hello(t, d).packet())
			for range 200 {
				_, _ = c.Write(packet(0x82, []byte{0, 9}, str("#"), []byte{1})) // until the broker has enough
			}
		case i%2 == 0:
			c.send([]byte{0x10, 0xff, 0xff, 0xff, 0x7f})
		case i%3 == 0:
			c.send(hello{id: honest.id, username: honest.id, password: "x"}.packet()[:12])
		}
	}
	grown := int64(heap()) - int64(before)
	var worst time.Duration
	for i := range 20 {
		command := fmt.Sprintf("cmd-under-attack-%d", i)
		begin := time.Now()
		line.publish(topics.Device(honest.id, protocol.KindResult), protocol.Result{Command: command, Attempt: 1, State: fleet.TargetFailed}, 1)
		line.ack(honest.id, command)
		worst = max(worst, time.Since(begin))
	}
	t.Logf("1,000 hostile sockets: %d KiB more, slowest acknowledgement of an honest device %v", grown>>10, worst)
	if grown > 64<<20 {
		t.Errorf("%d MiB more", grown>>20)
	}
	if worst > time.Second {
		t.Errorf("an acknowledgement took %v", worst)
	}
	for _, c := range sockets {
		_ = c.Close()
	}
}
