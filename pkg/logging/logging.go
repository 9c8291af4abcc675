// Package logging sets up the one logger of a program: JSON lines, or coloured
// text at a terminal, with secrets taken out of every line.
package logging

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// timeFormat is RFC 3339 with milliseconds, always UTC.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// Config says what to log and how. The zero value logs at info to stderr.
type Config struct {
	// Level is debug, info, warn or error; empty means info.
	Level string
	// Format is json, console or auto; empty means auto: console when Out is
	// a terminal.
	Format string
	// Out is where lines go; nil means stderr.
	Out io.Writer
}

// New returns the program's logger.
func New(cfg Config) (zerolog.Logger, error) {
	level, err := parseLevel(cfg.Level)
	if err != nil {
		return zerolog.Nop(), err
	}
	w, err := writer(cfg)
	if err != nil {
		return zerolog.Nop(), err
	}
	return zerolog.New(w).Level(level).Hook(stamp{}), nil
}

// Level is a log level that can be changed while the program runs.
type Level struct{ v atomic.Int32 }

// Set changes the level; a name that is none leaves it as it is.
func (l *Level) Set(name string) error {
	level, err := parseLevel(name)
	if err != nil {
		return err
	}
	l.v.Store(int32(level))
	return nil
}

// Run makes Level a zerolog hook.
func (l *Level) Run(e *zerolog.Event, level zerolog.Level, _ string) {
	if level < zerolog.Level(l.v.Load()) {
		e.Discard()
	}
}

// NewAdjustable is New with a level that can be changed, for all loggers
// derived from this one. A line below the level costs its making, not only a
// comparison: it is meant for programs that log little.
func NewAdjustable(cfg Config) (zerolog.Logger, *Level, error) {
	l := new(Level)
	if err := l.Set(cfg.Level); err != nil {
		return zerolog.Nop(), nil, err
	}
	cfg.Level = "debug"
	log, err := New(cfg)
	if err != nil {
		return zerolog.Nop(), nil, err
	}
	return log.Hook(l), l, nil
}

func parseLevel(name string) (zerolog.Level, error) {
	switch name {
	case "", "info":
		return zerolog.InfoLevel, nil
	case "debug":
		return zerolog.DebugLevel, nil
	case "warn":
		return zerolog.WarnLevel, nil
	case "error":
		return zerolog.ErrorLevel, nil
	}
	return 0, fmt.Errorf("log level is %q, use debug, info, warn or error", name)
}

func writer(cfg Config) (io.Writer, error) {
	out := cfg.Out
	if out == nil {
		out = os.Stderr
	}
	console := isTerminal(out)
	switch cfg.Format {
	case "", "auto":
	case "json":
		console = false
	case "console":
		console = true
	default:
		return nil, fmt.Errorf("log format is %q, use auto, json or console", cfg.Format)
	}
	if console {
		out = zerolog.ConsoleWriter{Out: out, TimeFormat: time.TimeOnly, NoColor: !isTerminal(out)}
	}
	return NewRedactor(out), nil
}

// isTerminal says whether w is a character device, which is near enough.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// stamp adds the time; zerolog's own way is set by package variables, which a
// library must not touch.
type stamp struct{}

func (stamp) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Str(zerolog.TimestampFieldName, time.Now().UTC().Format(timeFormat))
}
