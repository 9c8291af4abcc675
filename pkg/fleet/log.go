package fleet

import "time"

// LogLine is one stored line of a device's log.
type LogLine struct {
	ID         string    `json:"id" doc:"Rises with every line; for after"`
	At         time.Time `json:"at" doc:"By the device's clock"`
	ReceivedAt time.Time `json:"received_at"`
	Level      string    `json:"level" doc:"debug, info, warn, error; empty when the program did not say"`
	Source     string    `json:"source" doc:"run: the bundle's program; agent: what the agent did with it"`
	Message    string    `json:"message"`
}

// LogFilter chooses lines of one device, newest first; with After, oldest first
// from the line behind that one on.
type LogFilter struct {
	Level    string    // this one and worse; a line without one counts as info. "" is all
	From, To time.Time // by the device's clock; zero is open
	After    string
}

// LogRequest asks a device for lines.
type LogRequest struct {
	Lines   int        `json:"lines,omitempty" minimum:"0" maximum:"1000" doc:"The newest so many that are on the device"`
	Since   *time.Time `json:"since,omitempty" doc:"Of those, none that is older by the device's clock"`
	FollowS int        `json:"follow_s,omitempty" minimum:"0" maximum:"3600" doc:"And what comes within so many seconds"`
}

// CommandRef names a command that a device will do once it hears of it.
type CommandRef struct {
	Command string `json:"command"`
}
