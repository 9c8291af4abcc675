package main

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// logged is a device's batch of lines, a millisecond apart.
func (w *world) logged(id string, level string, messages ...string) {
	w.t.Helper()
	var l protocol.Log
	for i, m := range messages {
		l.Lines = append(l.Lines, protocol.LogLine{Time: time.Now().UnixMilli() + int64(i), Source: "run", Level: level, Message: m})
	}
	b, err := json.Marshal(l)
	if err != nil {
		w.t.Error(err)
	}
	w.orch.Receive(protocol.NewTopics("").Device(id, protocol.KindLog), b)
}

func TestADevicesLogIsShownAndFollowedFromTheCommandLine(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var asked, restarted atomic.Int64
	var id string
	id = w.addDevice(nil, func(c protocol.Command) []protocol.Result {
		switch {
		case c.Type == protocol.CommandRestart:
			restarted.Add(1)
		case c.Logs != nil && asked.Add(1) == 1: // later ones bring nothing new, as with the Go agent
			w.logged(id, "", "loaded the model", "  in 3 s \x1b[31m")
		}
		return []protocol.Result{{State: fleet.TargetSucceeded}}
	})
	out, _ := w.kernex(exitDone, "device", "logs", id)
	contains(t, out, "run  loaded the model\n", "run    in 3 s")
	if strings.Contains(out, "\x1b") || strings.Count(out, "\n") != 2 || asked.Load() != 1 {
		t.Errorf("asked %d times: %q", asked.Load(), out)
	}
	list := kernexJSON[fleet.List[fleet.LogLine]](w, exitDone, "device", "logs", id, "-n", "1", "--stored")
	if len(list.Items) != 1 || list.Total != 2 || !strings.HasPrefix(list.Items[0].Message, "  in 3 s") {
		t.Errorf("%+v", list)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var plain, lines, errs output
	codes := make(chan int, 2)
	go func() { codes <- w.start(ctx, &plain, &errs, "device", "logs", "-f", "-n", "1", id) }()
	go func() {
		codes <- w.start(ctx, &lines, &errs, "device", "logs", "-f", "-n", "0", "--level", "warn", "-o", "json", id)
	}()
	w.eventually("both to have asked", func() bool { return asked.Load() == 3 && strings.Contains(plain.String(), "in 3 s") })
	w.logged(id, "", "live")
	w.logged(id, "warn", "hot")
	w.eventually("the lines", func() bool {
		return strings.Contains(plain.String(), "run warn  hot") && strings.Contains(lines.String(), `"message":"hot"`)
	})
	stop()
	for range 2 {
		if c := <-codes; c != exitDone {
			t.Errorf("exit code %d: %s", c, &errs)
		}
	}
	if strings.Contains(lines.String(), "live") || strings.Count(plain.String(), "live") != 1 || strings.Contains(plain.String(), "loaded") {
		t.Errorf("plain:\n%s\nwarn:\n%s", &plain, &lines)
	}

	out, _ = w.kernex(exitDone, "device", "restart", id)
	contains(t, out, id, "cmd-")
	w.eventually("the restart", func() bool { return restarted.Load() == 1 })

	tokens, _ := w.kernex(exitDone, "token", "create", "--name", "v", "--role", "viewer")
	out, said := w.kernex(exitDone, "--token", strings.TrimSpace(tokens), "device", "logs", id)
	contains(t, out, "hot")
	contains(t, said, "may not ask")
	_, said = w.kernex(exitFailed, "device", "logs", "nosuchdevice")
	contains(t, said, "nosuchdevice")
	w.kernex(exitUsage, "device", "logs", id, "-n", "1001")
	w.kernex(exitDone, "device", "quarantine", id)
	out, said = w.kernex(exitDone, "device", "logs", id)
	contains(t, out, "hot")
	contains(t, said, "quarantined")
}
