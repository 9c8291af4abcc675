package logs

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/protocol"
)

// stamp is how a record's time is written, always UTC.
const stamp = "2006-01-02T15:04:05.000Z"

// noLevel stands for a line whose level is not known.
const noLevel = "-"

// appendRecord appends "time source level text\n": for people who read the file,
// and for tail.
func appendRecord(out []byte, at time.Time, source, level string, text []byte) []byte {
	if level == "" {
		level = noLevel
	}
	out = at.AppendFormat(out, stamp)
	out = append(out, ' ')
	out = append(out, source...)
	out = append(out, ' ')
	out = append(out, level...)
	out = append(out, ' ')
	return append(append(out, text...), '\n')
}

// parseRecord reads a record without its newline; ok is false for what a crash
// or somebody else has left in the file.
func parseRecord(rec []byte) (protocol.LogLine, bool) {
	part := bytes.SplitN(rec, []byte(" "), 4)
	if len(part) != 4 {
		return protocol.LogLine{}, false
	}
	at, err := time.Parse(stamp, string(part[0]))
	source, level := string(part[1]), string(part[2])
	if err != nil || source != sourceRun && source != sourceAgent || at.UnixMilli() < 0 {
		return protocol.LogLine{}, false
	}
	switch level {
	case noLevel:
		level = ""
	case "info", "warn":
	default:
		return protocol.LogLine{}, false
	}
	return protocol.LogLine{Time: at.UnixMilli(), Source: source, Level: level, Message: clean(part[3])}, true
}

// tail returns the last n records of data, oldest first and none before since;
// last is the number of the last of all.
func tail(data []byte, last int64, n int, since time.Time) []line {
	var out []line
	for number := last; len(data) > 0 && len(out) < n; {
		data = bytes.TrimSuffix(data, []byte("\n"))
		i := bytes.LastIndexByte(data, '\n') + 1
		l, ok := parseRecord(data[i:])
		data = data[:i]
		if !ok {
			continue
		}
		if !since.IsZero() && l.Time < since.UnixMilli() {
			break
		}
		out = append(out, line{number, l})
		number--
	}
	slices.Reverse(out)
	return out
}

// clean makes text storable: UTF-8 without NUL, not longer than a line may be.
func clean(text []byte) string {
	s := strings.ReplaceAll(strings.ToValidUTF8(string(text), "?"), "\x00", "?")
	return s[:min(len(s), protocol.MaxLogLine)]
}
