package agent_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// talking is a program that says which run it is, and what it is told to say.
const talking = `#!/bin/sh
echo "run $KERNEX_VERSION number $(cat $KERNEX_STATE_DIR/runs 2>/dev/null | wc -l)"
echo x >> $KERNEX_STATE_DIR/runs
echo $KERNEX_VERSION > $KERNEX_STATE_DIR/serving
while :; do
	if [ -e $KERNEX_STATE_DIR/say ]; then cat $KERNEX_STATE_DIR/say; rm $KERNEX_STATE_DIR/say; fi
	sleep 0.02
done
`

// said returns the messages of the log batches so far.
func (o *orchestrator) said() []string {
	var out []string
	for _, b := range o.logs {
		for _, l := range b.Lines {
			out = append(out, l.Message)
		}
	}
	return out
}

func TestTheProgramsLogIsSentWhenAskedForAndTheProgramRestarted(t *testing.T) {
	t.Parallel()
	o, d := connected(t)
	idle := o.command(d.DeviceID(), protocol.CommandRestart)
	o.send(idle, o.key)
	if r := o.final(idle.ID); r.State != fleet.TargetRejected || r.Error.Code != fleet.CodeConflict {
		t.Errorf("a restart of nothing: %+v", r)
	}
	if r := o.run(d.DeviceID(), o.pack("1.0.0", manifest, with(good(), "run.sh", talking))); r.State != fleet.TargetSucceeded {
		t.Fatalf("%+v %+v", r, r.Error)
	}
	ask := o.command(d.DeviceID(), protocol.CommandLogs)
	ask.Logs = &protocol.Logs{Lines: 10, FollowS: 60}
	o.send(ask, o.key)
	if r := o.final(ask.ID); r.State != fleet.TargetSucceeded {
		t.Fatalf("%+v", r)
	}
	o.await("the first line", func() bool { return slices.Contains(o.said(), "run 1.0.0 number 0") })
	if err := os.WriteFile(filepath.Join(d.dir, "state", "say"), []byte("tick\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o.await("a live line", func() bool { return slices.Contains(o.said(), "tick") })
	again := o.command(d.DeviceID(), protocol.CommandRestart)
	o.send(again, o.key)
	if r := o.final(again.ID); r.State != fleet.TargetSucceeded {
		t.Fatalf("%+v", r)
	}
	o.await("the second run", func() bool { return slices.Contains(o.said(), "run 1.0.0 number 1") })
	o.edit(func() {
		if got := strings.Join(o.said(), "\n"); strings.Count(got, "number 0") != 1 || !strings.Contains(got, "restart asked for") {
			t.Errorf("the log:\n%s", got)
		}
		if l := o.logs[0].Lines[0]; l.Time < time.Now().Add(-time.Minute).UnixMilli() || l.Source == "" {
			t.Errorf("%+v", l)
		}
	})
}

func TestSystemdHearsThatTheAgentIsReadyAliveAndStopping(t *testing.T) {
	t.Parallel()
	o := newOrchestrator(t)
	dir, err := os.MkdirTemp("", "notify") // a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var mu sync.Mutex
	var heard []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 256)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			mu.Lock()
			heard = append(heard, string(b[:n]))
			mu.Unlock()
		}
	}()
	words := func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(heard) }
	env := map[string]string{"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000", "KERNEX_STATE": "x", "KERNEX_BROKER": "y"}
	parsed, err := agent.Parse(nil, func(k string) string { return env[k] }, nil)
	if err != nil || parsed.Watchdog != 60*time.Millisecond {
		t.Fatalf("%v %v", parsed.Watchdog, err)
	}
	env["WATCHDOG_PID"] = "1"
	if other, _ := agent.Parse(nil, func(k string) string { return env[k] }, nil); other.Watchdog != 0 {
		t.Error("another process's watchdog was taken for ours")
	}
	cfg := config(o, t.TempDir())
	cfg.NotifySocket, cfg.Watchdog = parsed.NotifySocket, parsed.Watchdog
	d := start(o, cfg)
	wait(t, "three signs of life", func() bool {
		return len(words()) >= 4 && words()[0] == "READY=1" && words()[1] == "WATCHDOG=1" && words()[3] == "WATCHDOG=1"
	}, func() string { return strings.Join(words(), " ") })
	d.stop()
	wait(t, "the goodbye", func() bool { return slices.Contains(words(), "STOPPING=1") }, func() string { return strings.Join(words(), " ") })
	_ = conn.Close()
	<-done
}
