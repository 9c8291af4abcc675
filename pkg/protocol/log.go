package protocol

import "github.com/kernexhq/kernex/pkg/fleet"

// Bounds of what a logs command may ask for.
const (
	MaxLogLines   = 1000 // of those that are there already
	MaxLogFollowS = 3600 // seconds; whoever watches for longer asks again
)

// Bounds of one log batch and of its lines. A line that is longer is cut into
// several. Senders also keep the encoded batch below its topic's cap.
const (
	MaxLogBatch = 1000    // lines
	MaxLogLine  = 4 << 10 // bytes of one message
)

// Logs is the body of logs: which lines of the bundle's program to send.
type Logs struct {
	Lines   int   `json:"lines,omitempty"`    // the newest so many that are there
	Since   int64 `json:"since,omitempty"`    // Unix milliseconds; of those, none that is older
	FollowS int   `json:"follow_s,omitempty"` // and what comes within so many seconds
}

// Validate checks what is asked for.
func (l Logs) Validate() error {
	if l.Lines < 0 || l.Lines > MaxLogLines || l.Since < 0 || l.FollowS < 0 || l.FollowS > MaxLogFollowS {
		return fleet.Errorf(fleet.CodeInvalid, "logs: lines %d (0-%d), since %d, follow_s %d (0-%d)", l.Lines, MaxLogLines, l.Since, l.FollowS, MaxLogFollowS)
	}
	if l.Lines == 0 && l.FollowS == 0 {
		return fleet.Errorf(fleet.CodeInvalid, "logs: asks for no lines and does not follow")
	}
	return nil
}

// Validate checks a batch's bounds.
func (l Log) Validate() error {
	if len(l.Lines) == 0 || len(l.Lines) > MaxLogBatch {
		return fleet.Errorf(fleet.CodeInvalid, "log: %d lines, use 1-%d", len(l.Lines), MaxLogBatch)
	}
	for _, line := range l.Lines {
		if line.Time < 0 || line.Time > maxLogTime || !clean(line.Message, MaxLogLine) {
			return fleet.Errorf(fleet.CodeInvalid, "log: time %d, or a message that holds a NUL, is not UTF-8 or is longer than %d bytes", line.Time, MaxLogLine)
		}
		switch line.Level {
		case "", "debug", "info", "warn", "error":
		default:
			return fleet.Errorf(fleet.CodeInvalid, "log: level %.20q, use debug, info, warn or error", line.Level)
		}
		if err := fleet.Text("source", line.Source, 63); err != nil {
			return err
		}
	}
	return nil
}

// maxLogTime is the year 9999, Unix milliseconds: the last that RFC 3339 can
// write.
const maxLogTime = 253402300799999
