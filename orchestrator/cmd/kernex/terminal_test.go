package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// openTerminal makes a pseudo terminal of the given size and collects what is
// written to it.
func openTerminal(t *testing.T, columns, rows uint16) (*os.File, *output) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	screen := &output{}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(screen, master) // ends with EIO once the slave is closed
	}()
	t.Cleanup(func() {
		_ = slave.Close()
		<-ended
		_ = master.Close()
	})
	return slave, screen
}

func TestProgressOnATerminalIsOneBlockDrawnOver(t *testing.T) {
	t.Parallel()
	const columns = 60
	w := newWorld(t)
	commands := make(chan string, 1)
	id := w.addDevice(nil, func(c protocol.Command) []protocol.Result {
		commands <- c.ID
		return []protocol.Result{{State: fleet.TargetAccepted}, {State: fleet.TargetInstalling, Step: strings.Repeat("long step ", 6)}}
	})
	w.kernex(exitDone, "bundle", "push", w.bundleDir("1.0.0"))
	tty, screen := openTerminal(t, columns, 20)
	var errs output
	code := make(chan int, 1)
	go func() {
		code <- w.start(t.Context(), tty, &errs, "deploy", "--bundle", "vision", "--version", "1.0.0", "--selector", "")
	}()
	w.eventually("the installing step", func() bool { // the device's line and the counts are two answers of the API
		return strings.Contains(screen.String(), id+"  installing") && strings.Contains(screen.String(), "1 installing")
	})
	w.receive(id, protocol.KindResult, protocol.Result{
		Command: <-commands, Attempt: 1, State: fleet.TargetRolledBack, Error: &protocol.ErrorDetail{Code: fleet.CodeHealth, Message: "port 9100 is closed"},
	})
	if c := <-code; c != exitFailed {
		t.Fatalf("exit code %d: %s", c, &errs)
	}
	stays := func() string { s := screen.String(); return s[strings.LastIndex(s, "\x1b[J")+1:] }
	w.eventually("the outcome in the block's place", func() bool {
		return strings.Contains(stays(), id+"  rolled_back  port 9100 is closed (health)") && !strings.Contains(stays(), "[####")
	})
	contains(t, screen.String(), "\x1b[J", "[....................] in_progress", "1 installing")
	contains(t, errs.String(), "failed", "1 rolled_back")
	blocks := strings.Split(screen.String(), "\x1b[J")
	for _, b := range blocks[:len(blocks)-1] {
		for line := range strings.SplitSeq(b, "\r\n") {
			if utf8.RuneCountInString(line) >= columns && !strings.HasPrefix(line, "\x1b") {
				t.Errorf("a line would wrap and not be drawn over: %q", line)
			}
		}
	}
}
