package broker

import (
	"context"
	"log/slog"

	"github.com/rs/zerolog"
)

// slogHandler writes mochi's log to zerolog. It drops the attributes that hold
// whole packets, CONNECT's password and message payloads included, and lowers
// warnings to debug: any client can make as many as it likes, and the hook
// reports refusals itself.
type slogHandler struct{ log zerolog.Logger }

func newSlog(l zerolog.Logger) *slog.Logger {
	return slog.New(slogHandler{log: l.With().Str("part", "mochi").Logger()})
}

func level(l slog.Level) zerolog.Level {
	if l >= slog.LevelError {
		return zerolog.ErrorLevel
	}
	return zerolog.DebugLevel
}

// Enabled reports whether a record of level l would be written.
func (h slogHandler) Enabled(_ context.Context, l slog.Level) bool {
	return level(l) >= h.log.GetLevel() && level(l) >= zerolog.GlobalLevel()
}

// Handle writes one record.
func (h slogHandler) Handle(_ context.Context, r slog.Record) error {
	e := h.log.WithLevel(level(r.Level))
	r.Attrs(func(a slog.Attr) bool {
		if !secret(a.Key) {
			e.Interface(a.Key, value(a))
		}
		return true
	})
	e.Msg(r.Message)
	return nil
}

// WithAttrs returns a handler that adds attributes to each record.
func (h slogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := h.log.With()
	for _, a := range attrs {
		if !secret(a.Key) {
			with = with.Interface(a.Key, value(a))
		}
	}
	return slogHandler{log: with.Logger()}
}

// WithGroup returns h: mochi uses no groups.
func (h slogHandler) WithGroup(string) slog.Handler { return h }

func secret(key string) bool { return key == "pk" || key == "packet" || key == "will" }

func value(a slog.Attr) any {
	v := a.Value.Resolve().Any()
	if err, ok := v.(error); ok {
		return err.Error()
	}
	return v
}
