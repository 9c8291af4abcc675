package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

func (a *app) json() bool { return a.flags.Output == "json" }

// printJSON prints v as the API writes it: times RFC 3339, names snake_case.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("print the answer: %w", err)
	}
	return nil
}

// table prints rows in aligned columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer) table { return table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)} }

// row prints one line; each cell is made safe and never empty, so that columns
// can be cut apart again.
func (t table) row(cells ...string) {
	for i, c := range cells {
		if cells[i] = printable(c); cells[i] == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t table) flush() error {
	if err := t.w.Flush(); err != nil {
		return fmt.Errorf("print the answer: %w", err)
	}
	return nil
}

// showList prints a page as a table with a head, or as the API's JSON.
func showList[T any](a *app, p fleet.List[T], noun string, head []string, row func(T) []string) error {
	if a.json() {
		return a.printJSON(p)
	}
	if len(p.Items) == 0 {
		fmt.Fprintln(a.stderr, "no", noun)
		return nil
	}
	t := newTable(a.stdout)
	t.row(head...)
	for _, item := range p.Items {
		t.row(row(item)...)
	}
	if err := t.flush(); err != nil {
		return err
	}
	if p.NextCursor != "" {
		fmt.Fprintf(a.stderr, "%d of %d %s; --limit 0 shows all\n", len(p.Items), p.Total, noun)
	}
	return nil
}

// field is one line of what a get command shows.
type field struct{ name, value string }

// showOne prints v's fields below each other, or v as the API's JSON.
func (a *app) showOne(v any, fields ...field) error {
	if a.json() {
		return a.printJSON(v)
	}
	t := newTable(a.stdout)
	for _, f := range fields {
		t.row(f.name+":", f.value)
	}
	return t.flush()
}

// say prints one line for people, or v as JSON.
func (a *app) say(v any, format string, args ...any) error {
	if a.json() {
		return a.printJSON(v)
	}
	_, err := fmt.Fprintln(a.stdout, printable(fmt.Sprintf(format, args...)))
	return err
}

// ago says how long before now t was ("12s ago"), or how long after ("in 5m").
func (a *app) ago(t time.Time) string {
	d := a.now().Sub(t)
	switch {
	case t.IsZero():
		return "-"
	case d < 0:
		return "in " + short(-d)
	}
	return short(d) + " ago"
}

func (a *app) agoOr(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return a.ago(*t)
}

// short gives a duration in its largest unit that is not 0: 12s, 3m, 5h, 12d.
func short(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// bytesText gives a size in binary units with three digits.
func bytesText(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n)/(1<<10), "KMGTPE"
	for v >= 1023.95 && len(units) > 1 {
		v, units = v/(1<<10), units[1:]
	}
	return fmt.Sprintf("%.1f %ciB", v, units[0])
}
