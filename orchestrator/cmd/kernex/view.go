package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// view shows a running deployment: on a terminal one block that is drawn over,
// elsewhere a line for each change, and with -o json nothing.
type view struct {
	a     *app
	live  bool
	quiet bool
	start time.Time
	block int             // lines of the block on the screen
	last  string          // what the last plain line said, without its time
	told  map[string]bool // devices whose failure a plain line has told
}

func newView(a *app) *view {
	_, live := a.terminal(a.stdout)
	return &view{a: a, live: live, quiet: a.json(), start: a.now(), told: map[string]bool{}}
}

// show brings the view up to date; trouble says why the numbers may be old.
func (v *view) show(d fleet.Deployment, targets []fleet.Target, trouble string) {
	switch {
	case v.quiet:
		return
	case v.live:
		v.draw(d, targets, trouble)
		return
	}
	line := fmt.Sprintf("%s: %d of %d ended: %s", d.Status, ended(d), d.Total, first(countsText(d), "no devices yet"))
	if trouble != "" {
		line = trouble
	}
	if line != v.last {
		if v.last == "" {
			fmt.Fprintln(v.a.stdout, printable(fmt.Sprintf("deployment %s: %s", d.ID, subject(d))))
		}
		fmt.Fprintf(v.a.stdout, "%5s  %s\n", short(v.a.now().Sub(v.start)), printable(line))
		v.last = line
	}
	for _, t := range targets {
		if isFailed(t) && !v.told[t.DeviceID] {
			v.told[t.DeviceID] = true
			fmt.Fprintf(v.a.stdout, "       %s\n", targetLine(t))
		}
	}
}

// draw replaces the block. No line is longer and no block higher than the
// terminal: what wraps or scrolls away could not be drawn over.
func (v *view) draw(d fleet.Deployment, targets []fleet.Target, trouble string) {
	win, ok := v.a.terminal(v.a.stdout)
	if !ok {
		return
	}
	lines := []string{
		fmt.Sprintf("deployment %s: %s", d.ID, subject(d)),
		fmt.Sprintf("%s %s  %s  %d of %d", gauge(ended(d), d.Total), d.Status, short(v.a.now().Sub(v.start)), ended(d), d.Total),
		"  " + countsText(d),
	}
	for _, t := range targets {
		lines = append(lines, "  "+targetLine(t))
	}
	if more := failedCount(d) - mostLines; more > 0 && d.Total > fewDevices {
		lines = append(lines, fmt.Sprintf("  and %d more", more))
	}
	if trouble != "" {
		lines = append(lines, "  "+trouble)
	}
	if room := max(win.rows-1, 1); len(lines) > room {
		lines = lines[:room]
	}
	var b strings.Builder
	b.WriteString(v.erase())
	for _, l := range lines {
		b.WriteString(clip(strings.TrimRight(safe(l), " "), win.columns-1) + "\n")
	}
	v.block = len(lines)
	fmt.Fprint(v.a.stdout, b.String())
}

// safe is printable without its trim: an indent stays.
func safe(s string) string {
	indent := s[:len(s)-len(strings.TrimLeft(s, " "))]
	return indent + printable(s)
}

// erase moves to the block's first line and clears from there.
func (v *view) erase() string {
	if v.block == 0 {
		return ""
	}
	return fmt.Sprintf("\x1b[%dA\r\x1b[J", v.block)
}

// end takes the block away; the outcome stands in its place.
func (v *view) end() {
	if v.block > 0 {
		fmt.Fprint(v.a.stdout, v.erase())
		v.block = 0
	}
}

func gauge(n, total int) string {
	full := 0
	if total > 0 {
		full = 20 * n / total
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", 20-full) + "]"
}

func ended(d fleet.Deployment) int { return d.Progress[fleet.TargetSucceeded] + failedCount(d) }

func isFailed(t fleet.Target) bool { return t.State.Final() && t.State != fleet.TargetSucceeded }

// targetLine says where one device stands, in its own words where it failed.
func targetLine(t fleet.Target) string {
	s := fmt.Sprintf("%s  %s", t.DeviceID, t.State)
	switch {
	case isFailed(t):
		s += "  " + first(t.Error, t.ErrorCode, "no reason given")
		if t.ErrorCode != "" && t.Error != "" {
			s += " (" + t.ErrorCode + ")"
		}
	case t.State == fleet.TargetDownloading && t.Bytes > 0:
		s += "  " + bytesText(t.Bytes)
	case t.Step != "" && !t.State.Final():
		s += "  " + t.Step
	}
	return printable(s)
}

// outcome says how a deployment ended, with every failed device that was not
// told on the way, and fails unless it succeeded.
func (v *view) outcome(d fleet.Deployment, failed []fleet.Target) error {
	out := v.a.stdout
	if v.quiet {
		if err := v.a.printJSON(d); err != nil {
			return err
		}
		out = v.a.stderr
	}
	if v.live {
		fmt.Fprintln(out, printable(fmt.Sprintf("deployment %s: %s", d.ID, subject(d))))
	}
	for _, t := range failed {
		if !v.told[t.DeviceID] {
			fmt.Fprintf(out, "       %s\n", targetLine(t))
		}
	}
	outputTails(out, failed)
	took := ""
	if d.FinishedAt != nil {
		took = " in " + short(d.FinishedAt.Sub(d.CreatedAt))
	}
	switch {
	case d.Status != fleet.DeploymentSuccess:
		reason := ""
		if d.Reason != "" {
			reason = ": " + d.Reason
		}
		return fmt.Errorf("deployment %s %s%s (%s)%s", d.ID, d.Status, took, countsText(d), reason)
	case v.quiet:
		return nil
	}
	return v.a.say(nil, "deployment %s succeeded%s: %s", d.ID, took, countsText(d))
}

const tailLines = 5 // of a script's output, for each of a few devices

// outputTails prints the end of what the scripts of failed devices printed.
func outputTails(out io.Writer, failed []fleet.Target) {
	if len(failed) > fewDevices {
		return
	}
	for _, t := range failed {
		text := strings.TrimSpace(t.Output)
		if text == "" {
			continue
		}
		lines := strings.Split(text, "\n")
		fmt.Fprintf(out, "       %s printed:\n", printable(t.DeviceID))
		for _, l := range lines[max(0, len(lines)-tailLines):] {
			fmt.Fprintf(out, "         | %s\n", printable(l))
		}
	}
}
