package postgres

import (
	"encoding/base64"
	"testing"

	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// Few keys and values, so that requirements often meet labels.
var (
	selectorKey   = rapid.SampledFrom([]string{"site", "ring", "a/b", "x.y"})
	selectorValue = rapid.SampledFrom([]string{"", "berlin", "paris", "1"})
)

func TestASelectorChoosesTheSameInSQLAndInGo(t *testing.T) {
	t.Parallel()
	d, err := Open(t.Context(), testkit.Postgres(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	rapid.Check(t, func(t *rapid.T) {
		labels := fleet.Labels(rapid.MapOf(selectorKey, selectorValue).Draw(t, "labels"))
		var sel fleet.Selector
		for range rapid.IntRange(0, 4).Draw(t, "requirements") {
			sel = append(sel, fleet.Requirement{Key: selectorKey.Draw(t, "key"), Value: selectorValue.Draw(t, "value"), Not: rapid.Bool().Draw(t, "not")})
		}
		parsed, err := fleet.ParseSelector(sel.String())
		if err != nil {
			t.Fatalf("%q does not parse: %v", sel, err)
		}
		w := &where{}
		row := w.arg(labelsJSON(labels))
		w.selector("d.labels", parsed)
		var n int
		q := `SELECT count(*) FROM (SELECT ` + row + `::jsonb AS labels) d` + w.sql()
		if err := d.db.GetContext(t.Context(), &n, q, w.args...); err != nil {
			t.Fatal(err)
		}
		if (n == 1) != sel.Matches(labels) {
			t.Fatalf("%q on %q: SQL says %d, Go says %v", sel, labels.String(), n, sel.Matches(labels))
		}
	})
}

func FuzzCursorParts(f *testing.F) {
	f.Add("", 1)
	f.Add(cursorText("2026-01-01T00:00:00Z", "dep-a"), 2)
	f.Add(base64.RawURLEncoding.EncodeToString([]byte("a|b|c|\x00")), 4)
	f.Fuzz(func(t *testing.T, cursor string, n int) {
		parts, err := cursorParts(cursor, n)
		if err != nil {
			if fleet.ErrorCode(err) != fleet.CodeInvalid {
				t.Errorf("%q: %v", cursor, err)
			}
			return
		}
		if len(parts) != n {
			t.Errorf("%q: %d parts, want %d", cursor, len(parts), n)
		}
	})
}
