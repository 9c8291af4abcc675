package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// window is the size of a terminal, in characters.
type window struct{ columns, rows int }

// terminal reports whether w is a terminal that can move its cursor, and its
// size now.
func (a *app) terminal(w io.Writer) (window, bool) {
	f, ok := w.(*os.File)
	if !ok || a.env("TERM") == "dumb" {
		return window{}, false
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return window{}, false
	}
	win := window{columns: int(size.Col), rows: int(size.Row)}
	if win.columns == 0 || win.rows == 0 { // a serial line does not tell
		win = window{columns: 80, rows: 24}
	}
	return win, true
}
