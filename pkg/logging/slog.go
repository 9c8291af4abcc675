package logging

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/rs/zerolog"
)

// dropped are the attributes that never reach the log: the broker library puts
// whole packets into them, a CONNECT's password and a will included.
var dropped = []string{"pk", "packet", "will", "payload", "data"}

// NewSlog returns a slog logger, for libraries that want one, that writes to
// log. Values that are no scalars, errors or strings are shown by their type
// only: nobody knows what they hold.
func NewSlog(log zerolog.Logger) *slog.Logger { return slog.New(handler{log: log}) }

type handler struct {
	log    zerolog.Logger
	attrs  []slog.Attr // their keys are complete
	prefix string      // of the open groups, "a.b."
}

var slogLevels = []struct {
	min slog.Level
	out zerolog.Level
}{{slog.LevelError, zerolog.ErrorLevel}, {slog.LevelWarn, zerolog.WarnLevel}, {slog.LevelInfo, zerolog.InfoLevel}}

func convert(l slog.Level) zerolog.Level {
	for _, s := range slogLevels {
		if l >= s.min {
			return s.out
		}
	}
	return zerolog.DebugLevel
}

func (h handler) Enabled(_ context.Context, l slog.Level) bool {
	return convert(l) >= max(h.log.GetLevel(), zerolog.GlobalLevel())
}

func (h handler) Handle(_ context.Context, r slog.Record) error {
	e := h.log.WithLevel(convert(r.Level))
	for _, a := range h.attrs {
		add(e, "", a)
	}
	r.Attrs(func(a slog.Attr) bool {
		add(e, h.prefix, a)
		return true
	})
	e.Msg(r.Message)
	return nil
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	h.attrs = slices.Clip(h.attrs)
	for _, a := range attrs {
		if !slices.Contains(dropped, a.Key) { // before the prefix hides the name
			h.attrs = append(h.attrs, slog.Attr{Key: h.prefix + a.Key, Value: a.Value})
		}
	}
	return h
}

func (h handler) WithGroup(name string) slog.Handler {
	if name != "" {
		h.prefix += name + "."
	}
	return h
}

func add(e *zerolog.Event, prefix string, a slog.Attr) {
	if slices.Contains(dropped, a.Key) {
		return
	}
	key, v := prefix+a.Key, a.Value.Resolve()
	switch v.Kind() {
	case slog.KindGroup:
		if a.Key != "" { // a group without a name is inlined
			prefix = key + "."
		}
		for _, m := range v.Group() {
			add(e, prefix, m)
		}
	case slog.KindString:
		e.Str(key, v.String())
	case slog.KindInt64:
		e.Int64(key, v.Int64())
	case slog.KindUint64:
		e.Uint64(key, v.Uint64())
	case slog.KindFloat64:
		e.Float64(key, v.Float64())
	case slog.KindBool:
		e.Bool(key, v.Bool())
	case slog.KindDuration:
		e.Str(key, v.Duration().String())
	case slog.KindTime:
		e.Str(key, v.Time().UTC().Format(timeFormat))
	default:
		switch x := v.Any().(type) {
		case nil:
			if key != "" {
				e.Interface(key, nil)
			}
		case error:
			e.Str(key, x.Error())
		case []string:
			e.Strs(key, x)
		default:
			e.Str(key, fmt.Sprintf("(%T)", x))
		}
	}
}
