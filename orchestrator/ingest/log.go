package ingest

import (
	"context"

	"github.com/kernexhq/kernex/pkg/protocol"
)

// logLimit is how many bytes of log lines a device may send in DampEvery: twice
// what the Go agent sends at most.
const logLimit = 512 << 10

// logBatch bounds the messages of one transaction, 1 MiB of them.
const logBatch = 16

// logs stores log lines. Nobody repeats them, so they have a queue of their own
// in which they keep nothing else waiting.
func (i *Ingest) logs(ctx context.Context, batch []message) {
	var devices []string
	var lines []protocol.Log
	for _, m := range batch {
		if !i.lines.spend(m.id, len(m.payload)) {
			i.drop(m.kind, "rate")
			continue
		}
		var l protocol.Log
		if err := decode(m, &l); err != nil {
			i.invalid(m, err)
			continue
		}
		devices, lines = append(devices, m.id), append(lines, l)
	}
	if len(devices) == 0 {
		return
	}
	op, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if err := i.cfg.Store.StoreLogs(op, devices, lines); err != nil {
		i.metrics.dropped.WithLabelValues(string(protocol.KindLog), "error").Add(float64(len(devices)))
		i.cfg.Log.Error().Err(err).Int("messages", len(devices)).Msg("store log lines; they are lost")
	}
}
