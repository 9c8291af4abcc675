package systemtest

import (
	"context"
	"database/sql"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pressly/goose/v3"

	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/schema"
)

// TestMigrationsOnlyAdd lets the database itself say what each migration after
// the first did to what was there: an old program, which knows nothing of it,
// must be able to read and write on.
func TestMigrationsOnlyAdd(t *testing.T) {
	t.Parallel()
	db := openEmpty(t)
	dir, err := fs.Sub(schema.Migrations, "migrations")
	if err != nil {
		t.Fatal(err)
	}
	p, err := goose.NewProvider(goose.DialectPostgres, db, dir)
	if err != nil {
		t.Fatal(err)
	}
	var before catalog
	for i, source := range p.ListSources() {
		if _, err := p.UpTo(t.Context(), source.Version); err != nil {
			t.Fatal(err)
		}
		after := readCatalog(t, db)
		if i > 0 {
			for _, problem := range before.takenBy(after) {
				t.Errorf("%s: %s", source.Path, problem)
			}
		}
		before = after
	}
	if len(before.columns) < 100 {
		t.Errorf("only %d columns were compared", len(before.columns))
	}
}

func TestAMigrationThatTakesSomethingAwayIsFound(t *testing.T) {
	t.Parallel()
	for change, want := range map[string]string{
		`ALTER TABLE a DROP COLUMN note`:           "column a.note is gone",
		`ALTER TABLE a RENAME COLUMN note TO text`: "column a.note is gone",
		`DROP TABLE a`: "column a.id is gone",
		`ALTER TABLE a ALTER COLUMN n TYPE bigint`:                                                                    "column a.n was integer",
		`ALTER TABLE a ALTER COLUMN note SET NOT NULL`:                                                                "column a.note must have a value now",
		`ALTER TABLE a ALTER COLUMN n DROP DEFAULT`:                                                                   "column a.n lost its default",
		`ALTER TABLE a ADD COLUMN new text NOT NULL`:                                                                  "column a.new must have a value, which an old program does not give",
		`ALTER TABLE a ADD CONSTRAINT small CHECK (n < 10)`:                                                           "constraint small of a is new",
		`CREATE UNIQUE INDEX one ON a (note)`:                                                                         "index one of a is new and unique",
		`ALTER TABLE a DROP CONSTRAINT a_kind_check; ALTER TABLE a ADD CONSTRAINT a_kind_check CHECK (kind IN ('x'))`: "constraint a_kind_check of a does not allow 'y' any more",
		`ALTER TABLE a DROP CONSTRAINT a_pkey`:                                                                        "constraint a_pkey of a is gone",

		`ALTER TABLE a ADD COLUMN new text NOT NULL DEFAULT ''; ALTER TABLE a ADD COLUMN maybe int; CREATE INDEX quick ON a (note); CREATE TABLE b (id int PRIMARY KEY)`:     "",
		`ALTER TABLE a DROP CONSTRAINT a_kind_check; ALTER TABLE a ADD CONSTRAINT a_kind_check CHECK (kind IN ('x', 'y', 'z')); ALTER TABLE a ALTER COLUMN id SET DEFAULT 7`: "",
	} {
		db := openEmpty(t)
		for i, q := range []string{`CREATE TABLE a (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, note text, kind text NOT NULL CHECK (kind IN ('x', 'y')))`, change} {
			before := readCatalog(t, db)
			if _, err := db.ExecContext(t.Context(), q); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
			if i == 0 {
				continue
			}
			got := before.takenBy(readCatalog(t, db))
			if want == "" && len(got) > 0 || want != "" && !slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, want) }) {
				t.Errorf("%s: %q, want %q", change, got, want)
			}
		}
	}
}

func openEmpty(t *testing.T) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", testkit.EmptyPostgres(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// catalog is what programs depend on.
type catalog struct {
	columns     map[string]column // by table.column
	constraints map[string]string // definition by "name of table"
	unique      map[string]bool   // indexes by "name of table"
}

type column struct {
	kind                 string
	required, hasDefault bool
}

func readCatalog(t *testing.T, db *sql.DB) catalog {
	t.Helper()
	c := catalog{columns: map[string]column{}, constraints: map[string]string{}, unique: map[string]bool{}}
	each(t, db, `SELECT r.relname || '.' || a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.atthasdef OR a.attidentity <> ''
		FROM pg_attribute a JOIN pg_class r ON r.oid = a.attrelid
		WHERE r.relnamespace = 'public'::regnamespace AND r.relkind IN ('r', 'p') AND NOT r.relispartition AND a.attnum > 0 AND NOT a.attisdropped`,
		func(rows *sql.Rows) error {
			var name string
			var col column
			err := rows.Scan(&name, &col.kind, &col.required, &col.hasDefault)
			c.columns[name] = col
			return err
		})
	each(t, db, `SELECT k.conname || ' of ' || r.relname, pg_get_constraintdef(k.oid) FROM pg_constraint k JOIN pg_class r ON r.oid = k.conrelid
		WHERE r.relnamespace = 'public'::regnamespace AND NOT r.relispartition`,
		func(rows *sql.Rows) error {
			var name, definition string
			err := rows.Scan(&name, &definition)
			c.constraints[name] = definition
			return err
		})
	each(t, db, `SELECT i.relname || ' of ' || r.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class r ON r.oid = x.indrelid
		WHERE r.relnamespace = 'public'::regnamespace AND NOT r.relispartition AND x.indisunique`,
		func(rows *sql.Rows) error {
			var name string
			err := rows.Scan(&name)
			c.unique[name] = true
			return err
		})
	return c
}

func each(t *testing.T, db *sql.DB, q string, f func(*sql.Rows) error) {
	t.Helper()
	rows, err := db.QueryContext(context.WithoutCancel(t.Context()), q)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			t.Fatal(err)
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
}

// takenBy says what a program that was written for c misses in now, or what it
// writes and is refused.
func (c catalog) takenBy(now catalog) (out []string) {
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	tables := map[string]bool{}
	for name, was := range c.columns {
		table, _, _ := strings.Cut(name, ".")
		tables[table] = true
		switch is, ok := now.columns[name]; {
		case !ok:
			say("column %s is gone", name)
		case is.kind != was.kind:
			say("column %s was %s and is %s", name, was.kind, is.kind)
		case is.required && !was.required:
			say("column %s must have a value now", name)
		case was.hasDefault && !is.hasDefault:
			say("column %s lost its default", name)
		}
	}
	for name, is := range now.columns {
		table, _, _ := strings.Cut(name, ".")
		if _, old := c.columns[name]; !old && tables[table] && is.required && !is.hasDefault {
			say("column %s must have a value, which an old program does not give", name)
		}
	}
	for name, was := range c.constraints {
		is, ok := now.constraints[name]
		if !ok {
			say("constraint %s is gone", name)
			continue
		}
		if is == was {
			continue
		}
		if shape(is) != shape(was) {
			say("constraint %s was %s and is %s", name, was, is)
		}
		allowed := words.FindAllString(is, -1)
		for _, w := range words.FindAllString(was, -1) {
			if !slices.Contains(allowed, w) {
				say("constraint %s does not allow %s any more", name, w)
			}
		}
	}
	for name, is := range now.constraints {
		_, table, _ := strings.Cut(name, " of ")
		if _, old := c.constraints[name]; !old && tables[table] && !strings.HasPrefix(is, "UNIQUE") { // is an index too
			say("constraint %s is new: %s", name, is)
		}
	}
	for name := range now.unique {
		if _, table, _ := strings.Cut(name, " of "); !c.unique[name] && tables[table] {
			say("index %s is new and unique", name)
		}
	}
	return out
}

// words are the literals of a constraint, such as those of an IN list.
var words = regexp.MustCompile(`'[^']*'`)

// shape is a constraint without the literals of its list.
func shape(definition string) string {
	return regexp.MustCompile(`ARRAY\[[^\]]*\]`).ReplaceAllString(definition, "ARRAY[]")
}
