package postgres_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func logOf(from, to int, level string) protocol.Log {
	var l protocol.Log
	for i := from; i <= to; i++ {
		l.Lines = append(l.Lines, protocol.LogLine{Time: 1_790_000_000_000 + int64(i), Level: level, Source: "run", Message: fmt.Sprint(i)})
	}
	return l
}

func messages(l fleet.List[fleet.LogLine]) string {
	s := ""
	for _, line := range l.Items {
		s += line.Message + " "
	}
	return s
}

func TestLogLinesAreStoredInOrderAndListedByPage(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	a, b := s.Online(), s.Online()
	pending := s.Online()
	run(t, s, `UPDATE devices SET status = 'pending' WHERE id = $1`, pending)
	if err := s.DB.StoreLogs(t.Context(), []string{a, b, a, "nobody", pending}, []protocol.Log{logOf(1, 3, ""), logOf(90, 90, ""), logOf(4, 5, "warn"), logOf(1, 1, ""), logOf(1, 1, "")}); err != nil {
		t.Fatal(err)
	}
	list := func(f fleet.LogFilter, p fleet.Page) fleet.List[fleet.LogLine] {
		t.Helper()
		l, err := s.DB.Logs(t.Context(), a, nil, f, p)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	first := list(fleet.LogFilter{}, fleet.Page{Limit: 2})
	second := list(fleet.LogFilter{}, fleet.Page{Limit: 2, Cursor: first.NextCursor})
	third := list(fleet.LogFilter{}, fleet.Page{Limit: 2, Cursor: second.NextCursor})
	if messages(first)+messages(second)+messages(third) != "5 4 3 2 1 " || first.Total != 5 || third.NextCursor != "" {
		t.Errorf("%+v\n%+v\n%+v", first, second, third)
	}
	if at := second.Items[0].At; at.UnixMilli() != 1_790_000_000_003 {
		t.Errorf("at %v", at)
	}
	for level, want := range map[string]string{"debug": "5 4 3 2 1 ", "info": "5 4 3 2 1 ", "warn": "5 4 ", "error": ""} {
		if got := messages(list(fleet.LogFilter{Level: level}, fleet.Page{Limit: 10})); got != want {
			t.Errorf("%s: %s", level, got)
		}
	}
	span := fleet.LogFilter{From: time.UnixMilli(1_790_000_000_002), To: time.UnixMilli(1_790_000_000_004)}
	if got := messages(list(span, fleet.Page{Limit: 10})); got != "3 2 " {
		t.Errorf("from to: %s", got)
	}
	if got := messages(list(fleet.LogFilter{After: third.Items[0].ID}, fleet.Page{Limit: 3})); got != "2 3 4 " {
		t.Errorf("after: %s", got)
	}
	if n := value[int](t, s, `SELECT count(*) FROM device_logs`); n != 6 {
		t.Errorf("%d lines are stored", n)
	}
	if err := s.DB.DeleteDevice(t.Context(), a, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	if n := value[int](t, s, `SELECT count(*) FROM device_logs`); n != 1 {
		t.Errorf("%d lines are left of a device that was deleted", n)
	}
}

func TestLogLinesAreDroppedByAge(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	run(t, s, `INSERT INTO device_logs (device_id, received_at, at, level, source, message) VALUES ('a', now(), now(), '', 'run', 'new'), ('a', now() - interval '20 days', now(), '', 'run', 'old')`)
	if err := s.DB.EnsurePartitions(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	run(t, s, `CREATE TABLE device_logs_20200101 PARTITION OF device_logs FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z')`)
	if n, err := s.DB.DropPartitions(t.Context(), 7*24*time.Hour); err != nil || n != 1 {
		t.Fatalf("dropped %d, %v", n, err)
	}
	if left := value[string](t, s, `SELECT string_agg(message, ' ') FROM device_logs`); left != "new" {
		t.Errorf("left: %s", left)
	}
	run(t, s, `INSERT INTO device_logs (device_id, at, level, source, message) VALUES ('a', now(), '', 'run', 'newer')`)
	if n := value[int](t, s, `SELECT count(*) FROM device_logs_default`); n != 0 {
		t.Errorf("%d lines in the default partition", n)
	}
}

func TestARequestForLinesReplacesOneThatWaitsAndNeedsADeviceThatIsThere(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	id := s.Online()
	for range 2 {
		if _, err := s.DB.AskLogs(t.Context(), id, fleet.LogRequest{Lines: 5}, nil, fleet.System); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.DB.RestartProgram(t.Context(), id, nil, fleet.System); err != nil {
		t.Fatal(err)
	}
	if got := value[string](t, s, `SELECT string_agg(type || ' ' || status, ', ' ORDER BY seq) FROM commands`); got != "logs cancelled, logs open, restart open" {
		t.Errorf("commands: %s", got)
	}
	if n := value[int](t, s, `SELECT count(*) FROM audit WHERE action IN ('device.logs', 'device.restart') AND subject = $1`, id); n != 3 {
		t.Errorf("%d audit rows", n)
	}
	away := s.Device()
	if _, err := s.DB.AskLogs(t.Context(), away, fleet.LogRequest{Lines: 5}, nil, fleet.System); fleet.ErrorCode(err) != fleet.CodeConflict {
		t.Errorf("a device that is offline: %v", err)
	}
}
