package ingest_test

import (
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestLogLinesAreStoredWithinADevicesShare(t *testing.T) {
	t.Parallel()
	e, _ := start(t)
	id := e.Online()
	stored := func() int {
		l, err := e.DB.Logs(t.Context(), id, nil, fleet.LogFilter{}, fleet.Page{Limit: 1})
		if err != nil {
			t.Fatal(err)
		}
		return l.Total
	}
	e.send(id, protocol.KindLog, protocol.Log{Lines: []protocol.LogLine{{Time: 1, Message: "a"}, {Time: 2, Message: "b", Level: "warn"}}})
	testkit.Eventually(t, 10*time.Second, func() bool { return stored() == 2 })
	e.send(id, protocol.KindLog, protocol.Log{})
	e.send(id, protocol.KindLog, protocol.Log{Lines: []protocol.LogLine{{Time: 1, Message: "nul \x00"}}})
	e.send(id, protocol.KindLog, protocol.Log{Lines: []protocol.LogLine{{Time: -1, Message: "x"}}})
	testkit.Eventually(t, 10*time.Second, func() bool {
		return e.count("kernex_ingest_dropped_total", "kind=log", "reason=invalid") == 3
	})
	long := protocol.Log{}
	for range 15 {
		long.Lines = append(long.Lines, protocol.LogLine{Time: 1, Message: strings.Repeat("x", protocol.MaxLogLine)})
	}
	for range 20 { // of 60 KiB each: 512 KiB are a device's share
		e.send(id, protocol.KindLog, long)
	}
	testkit.Eventually(t, 10*time.Second, func() bool {
		return e.count("kernex_ingest_dropped_total", "kind=log", "reason=rate") == 12 && stored() == 2+8*15
	})
}
