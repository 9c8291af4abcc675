package protocol

import (
	"math"
	"unicode/utf8"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Validate checks a heartbeat's bounds.
func (h Heartbeat) Validate() error {
	if h.Session < 1 || h.Seq < 1 || h.StateRev < 0 || h.UptimeS < 0 {
		return fleet.Errorf(fleet.CodeInvalid, "heartbeat: session %d and seq %d start at 1; state_rev %d and uptime_s %d are not negative", h.Session, h.Seq, h.StateRev, h.UptimeS)
	}
	if !validHealth(h.Status, true) {
		return fleet.Errorf(fleet.CodeInvalid, "heartbeat: status %q, use healthy, degraded or error", h.Status)
	}
	for name, v := range map[string]*float64{"cpu_pct": h.CPUPct, "memory_mb": h.MemoryMB, "disk_pct": h.DiskPct} {
		if v != nil && (*v < 0 || *v > 1e9 || math.IsNaN(*v)) {
			return fleet.Errorf(fleet.CodeInvalid, "heartbeat: %s is %v", name, *v)
		}
	}
	return fleet.Text("agent_version", h.AgentVersion, 63)
}

// Validate checks a state report's bounds.
func (s State) Validate() error {
	if s.Session < 1 || s.StateRev < 0 || s.ConfigVersion < 0 || s.HighestSeq < 0 {
		return fleet.Errorf(fleet.CodeInvalid, "state: session %d starts at 1; state_rev %d, config_version %d and highest_seq %d are not negative", s.Session, s.StateRev, s.ConfigVersion, s.HighestSeq)
	}
	if !validHealth(s.Status, false) {
		return fleet.Errorf(fleet.CodeInvalid, "state: status %q, use healthy, degraded or error", s.Status)
	}
	switch s.ConfigOutcome {
	case "", "applied", "rejected", "reverted":
	default:
		return fleet.Errorf(fleet.CodeInvalid, "state: config_outcome %q, use applied, rejected or reverted", s.ConfigOutcome)
	}
	for name, v := range map[string]string{
		"boot": s.Boot, "agent_version": s.AgentVersion, "os": s.OS, "arch": s.Arch, "bundle_name": s.BundleName,
		"bundle_version": s.BundleVersion, "release": s.Release, "last_command": s.LastCommand, "last_command_state": s.LastCommandState,
	} {
		if err := fleet.Text(name, v, 255); err != nil {
			return err
		}
	}
	if err := s.validTrust(); err != nil {
		return err
	}
	if !clean(s.ConfigError, 2<<10) {
		return fleet.Errorf(fleet.CodeInvalid, "state: config_error holds a NUL or is longer than 2 KiB")
	}
	return fleet.Registration{HardwareMetadata: s.Hardware}.Validate()
}

// Validate checks a result's bounds; whether the command exists is the
// orchestrator's to say.
func (r Result) Validate() error {
	if !r.State.DeviceMayReport() {
		return fleet.Errorf(fleet.CodeInvalid, "result: state %q is not one that a device reports", r.State)
	}
	if r.Command == "" || r.Attempt < 0 || r.Bytes < 0 || r.DurationMS < 0 {
		return fleet.Errorf(fleet.CodeInvalid, "result: command %q, attempt %d, bytes %d, duration_ms %d", r.Command, r.Attempt, r.Bytes, r.DurationMS)
	}
	if err := fleet.Text("command", r.Command, 63); err != nil {
		return err
	}
	if err := fleet.Text("step", r.Step, 63); err != nil {
		return err
	}
	if !clean(r.Output, 12<<10) || r.Error != nil && (!clean(r.Error.Message, 4<<10) || !clean(string(r.Error.Code), 63)) {
		return fleet.Errorf(fleet.CodeInvalid, "result: output or error holds a NUL, is not UTF-8 or is too long")
	}
	return nil
}

// Validate checks a request.
func (r Request) Validate() error {
	switch r.Want {
	case WantURL, WantCommands, WantCertificate:
	default:
		return fleet.Errorf(fleet.CodeInvalid, "request: want %q, use url, commands or certificate", r.Want)
	}
	return fleet.Text("command", r.Command, 63)
}

// Validate checks a presence message.
func (p Presence) Validate() error {
	if p.Session < 1 {
		return fleet.Errorf(fleet.CodeInvalid, "presence: session %d, it starts at 1", p.Session)
	}
	return nil
}

// TrimText returns the last limit bytes of s as UTF-8 without NUL, which
// Postgres's text type refuses.
func TrimText(s string, limit int) string {
	if len(s) > limit {
		s = s[len(s)-limit:]
	}
	b := make([]rune, 0, len(s))
	for _, r := range s {
		if r != 0 && r != utf8.RuneError {
			b = append(b, r)
		}
	}
	return string(b)
}

func validHealth(s string, optional bool) bool {
	return s == "healthy" || s == "degraded" || s == "error" || optional && s == ""
}

// clean reports whether s can be stored: UTF-8, no NUL, at most limit bytes.
func clean(s string, limit int) bool {
	if len(s) > limit || !utf8.ValidString(s) {
		return false
	}
	for i := range len(s) {
		if s[i] == 0 {
			return false
		}
	}
	return true
}
