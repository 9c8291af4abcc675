package postgres

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// where collects conditions and their arguments, numbered as they come.
type where struct {
	conds []string
	args  []any
}

// arg adds an argument and returns its placeholder.
func (w *where) arg(v any) string {
	w.args = append(w.args, v)
	return "$" + strconv.Itoa(len(w.args))
}

// and adds a condition; each %s in it is replaced by the placeholder of the
// value at its place.
func (w *where) and(cond string, values ...any) {
	marks := make([]any, len(values))
	for i, v := range values {
		marks[i] = w.arg(v)
	}
	w.conds = append(w.conds, fmt.Sprintf(cond, marks...))
}

// selector adds sel over the jsonb column col. What must be equal is one
// containment test, which the GIN index answers.
func (w *where) selector(col string, sel fleet.Selector) {
	equal := fleet.Labels{}
	for _, r := range sel {
		pair := labelsJSON(fleet.Labels{r.Key: r.Value})
		switch v, again := equal[r.Key]; {
		case r.Not:
			w.and("NOT "+col+" @> %s::jsonb", pair)
		case again && v != r.Value: // two values for one key: nothing matches
			w.and(col+" @> %s::jsonb", pair)
		default:
			equal[r.Key] = r.Value
		}
	}
	if len(equal) > 0 {
		w.and(col+" @> %s::jsonb", labelsJSON(equal))
	}
}

// sql returns " WHERE ..." or nothing.
func (w *where) sql() string {
	if len(w.conds) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conds, " AND ")
}

// labelsJSON encodes labels for a jsonb parameter; a map of strings never fails.
func labelsJSON(l fleet.Labels) string {
	if l == nil {
		l = fleet.Labels{}
	}
	b, _ := json.Marshal(l)
	return string(b)
}

// cursorText makes an opaque cursor of the last row's sort key.
func cursorText(parts ...string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strings.Join(parts, "|")))
}

// cursorParts reads n parts back; a cursor that no list of ours gave is invalid.
func cursorParts(cursor string, n int) ([]string, error) {
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	parts := strings.Split(string(b), "|")
	if err != nil || len(parts) != n || strings.ContainsRune(string(b), 0) || len(cursor) > 512 {
		return nil, fleet.Errorf(fleet.CodeInvalid, "cursor %.80q is not one that a list answered", cursor)
	}
	return parts, nil
}

// cursorTime adds "older than the cursor" to a list ordered by created_at and
// id, both descending.
func (w *where) cursorTime(prefix, cursor string) error {
	if cursor == "" {
		return nil
	}
	p, err := cursorParts(cursor, 2)
	if err != nil {
		return err
	}
	at, err := time.Parse(time.RFC3339Nano, p[0])
	if err != nil {
		return fleet.Errorf(fleet.CodeInvalid, "cursor %.80q is not one that a list answered", cursor)
	}
	w.and("("+prefix+"created_at, "+prefix+"id) < (%s, %s)", at, p[1])
	return nil
}

// cursorID adds "below the cursor" to a list ordered by a number, descending.
func (w *where) cursorID(col, cursor string) error {
	if cursor == "" {
		return nil
	}
	p, err := cursorParts(cursor, 1)
	if err != nil {
		return err
	}
	id, err := strconv.ParseInt(p[0], 10, 64)
	if err != nil {
		return fleet.Errorf(fleet.CodeInvalid, "cursor %.80q is not one that a list answered", cursor)
	}
	w.and(col+" < %s", id)
	return nil
}

// cut makes a page of rows that were asked for with limit+1; next gives the
// cursor after an item.
func cut[T any](rows []T, limit, total int, next func(T) string) fleet.List[T] {
	l := fleet.List[T]{Items: rows, Total: total}
	if l.Items == nil {
		l.Items = []T{}
	}
	if len(rows) > limit {
		l.Items = rows[:limit]
		l.NextCursor = next(l.Items[limit-1])
	}
	return l
}

// mapRows turns rows into what the API shows.
func mapRows[R, T any](rows []R, f func(R) (T, error)) ([]T, error) {
	out := make([]T, 0, len(rows))
	for _, r := range rows {
		v, err := f(r)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func cursorAt(at time.Time, id string) string {
	return cursorText(at.UTC().Format(time.RFC3339Nano), id)
}
