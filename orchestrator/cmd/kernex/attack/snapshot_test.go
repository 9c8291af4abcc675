package attack

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/testkit"
)

// snapshot is the count and the digest of each table's rows, and the objects of
// the store.
type snapshot map[string]string

// own are the tables, and the columns, in which the system itself keeps its
// place: they change while nobody does anything.
const (
	ownTables  = `('leases', 'goose_db_version')`
	ownColumns = `ARRAY['last_used_at', 'number']`
)

func (s *system) look(t *testing.T) snapshot {
	t.Helper()
	rows, err := s.db.QueryContext(t.Context(), `SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' AND table_type = 'BASE TABLE'
		AND table_name NOT IN `+ownTables)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	snap := snapshot{}
	for _, name := range names {
		where := ""
		if name == "settings" {
			where = ` WHERE name NOT IN ('engine_tick', 'events_published')`
		}
		got := value[string](t, s, `SELECT count(*) || ' rows ' || md5(coalesce(string_agg(j, '' ORDER BY j), '')) FROM (SELECT (to_jsonb(t) - `+ownColumns+`)::text AS j FROM "`+name+`" t`+where+`) x`)
		if !strings.HasPrefix(got, "0 ") {
			snap[name] = got
		}
	}
	n := 0
	err = filepath.WalkDir(s.s3.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Base(filepath.Dir(path)) == "bundles" {
			n++
		}
		return nil // an upload's own files come and go
	})
	if err != nil {
		t.Fatal(err)
	}
	snap["objects"] = fmt.Sprint(n)
	return snap
}

// settled waits until nothing changes by itself any more.
func (s *system) settled(t *testing.T) snapshot {
	t.Helper()
	last := s.look(t)
	testkit.Eventually(t, 20*time.Second, func() error {
		now := s.look(t)
		changed := last.changes(now)
		last = now
		if len(changed) > 0 {
			return fmt.Errorf("still changing: %q", changed)
		}
		return nil
	})
	return last
}

// changes lists what differs.
func (s snapshot) changes(now snapshot) (list []string) {
	for name, was := range s {
		if now[name] != was {
			list = append(list, fmt.Sprintf("%s: %s, then %s", name, was, now[name]))
		}
	}
	for name, is := range now {
		if _, ok := s[name]; !ok {
			list = append(list, fmt.Sprintf("%s: nothing, then %s", name, is))
		}
	}
	return list
}

// unchanged fails the test unless everything is as it was.
func (s *system) unchanged(t *testing.T, before snapshot) {
	t.Helper()
	for _, c := range before.changes(s.look(t)) {
		t.Errorf("something changed: %s", c)
	}
}
