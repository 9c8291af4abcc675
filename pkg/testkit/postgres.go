package testkit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lib/pq"
	"github.com/pressly/goose/v3"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/pgcluster"
	"github.com/kernexhq/kernex/schema"
)

// PostgresEnv names the environment variable with the connection string of a
// superuser on an existing server, used instead of starting one.
const PostgresEnv = "KERNEX_TEST_POSTGRES"

// startLimit bounds bringing the server up and migrating the template; both
// take about a second on an idle machine.
const startLimit = 2 * time.Minute

// server is the one Postgres of this test process.
var server = sync.OnceValues(startServer)

// template is the name of the migrated database that others are copied from.
var template = sync.OnceValues(makeTemplate)

// Postgres returns the connection string of a fresh database with the embedded
// schema, for this test only: it is dropped when the test ends. The server is
// shared by the tests of one process, starts with the first call and dies with
// the process. It runs without durability: a test that kills Postgres and
// looks at what survived needs a cluster of its own (pgcluster.Start).
func Postgres(t testing.TB) string {
	t.Helper()
	name, err := template()
	if err != nil {
		t.Fatalf("prepare the template database: %v", err)
	}
	return newDatabase(t, " TEMPLATE "+pq.QuoteIdentifier(name))
}

// EmptyPostgres is Postgres without the schema, for tests of the migrations.
func EmptyPostgres(t testing.TB) string {
	t.Helper()
	return newDatabase(t, "")
}

func newDatabase(t testing.TB, options string) string {
	t.Helper()
	admin, err := server()
	if err != nil {
		t.Fatalf("start Postgres: %v", err)
	}
	name := "t_" + strings.ToLower(rand.Text()[:16])
	if err := execute(t.Context(), admin, "CREATE DATABASE "+pq.QuoteIdentifier(name)+options); err != nil {
		t.Fatalf("create a database: %v", err)
	}
	t.Cleanup(func() {
		// FORCE also ends connections that the test forgot.
		if err := execute(context.Background(), admin, "DROP DATABASE "+pq.QuoteIdentifier(name)+" WITH (FORCE)"); err != nil {
			t.Errorf("drop the test's database: %v", err)
		}
	})
	dsn, err := withDatabase(admin, name)
	if err != nil {
		t.Fatalf("connection string: %v", err)
	}
	return dsn
}

// startServer returns a superuser's connection string.
func startServer() (string, error) {
	if dsn := os.Getenv(PostgresEnv); dsn != "" {
		return dsn, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	dir, err := ownDir("pg")
	if err != nil {
		return "", err
	}
	// Where no Main stops this cluster the kernel does, when the process ends.
	c, err := pgcluster.Start(ctx, pgcluster.Config{
		DataDir: filepath.Join(dir, "data"), Fast: true, MaxConnections: 300, Logger: zerolog.Nop(),
	})
	if err != nil {
		return "", err
	}
	atEnd(func() {
		_ = c.Stop(context.Background())
		_ = os.RemoveAll(dir)
	})
	return c.DSN("postgres"), nil
}

// makeTemplate migrates one database. Its name is the migrations' digest, so
// that processes which share a server make it once and never use a stale one.
func makeTemplate() (string, error) {
	admin, err := server()
	if err != nil {
		return "", err
	}
	migrations, err := fs.Sub(schema.Migrations, "migrations")
	if err != nil {
		return "", fmt.Errorf("open the migrations: %w", err)
	}
	sum, err := digest(migrations)
	if err != nil {
		return "", err
	}
	name := "kernex_template_" + sum[:12]
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	db, err := sql.Open("postgres", admin)
	if err != nil {
		return "", fmt.Errorf("open: %w", err)
	}
	defer db.Close()
	conn, err := db.Conn(ctx)
	if err != nil {
		return "", fmt.Errorf("connect: %w", err)
	}
	defer conn.Close() // also ends the advisory lock
	if _, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock(hashtext($1))", name); err != nil {
		return "", fmt.Errorf("wait for other test processes: %w", err)
	}
	var exists bool
	if err := conn.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)", name).Scan(&exists); err != nil {
		return "", fmt.Errorf("look for the template: %w", err)
	}
	if exists {
		return name, nil
	}
	// The final name appears only when all migrations ran.
	draft := name + "_draft"
	for _, q := range []string{
		"DROP DATABASE IF EXISTS " + pq.QuoteIdentifier(draft) + " WITH (FORCE)",
		"CREATE DATABASE " + pq.QuoteIdentifier(draft),
	} {
		if _, err := conn.ExecContext(ctx, q); err != nil {
			return "", fmt.Errorf("create the template: %w", err)
		}
	}
	dsn, err := withDatabase(admin, draft)
	if err != nil {
		return "", err
	}
	if err := migrate(ctx, dsn, migrations); err != nil {
		return "", err
	}
	if _, err := conn.ExecContext(ctx, "ALTER DATABASE "+pq.QuoteIdentifier(draft)+" RENAME TO "+pq.QuoteIdentifier(name)); err != nil {
		return "", fmt.Errorf("finish the template: %w", err)
	}
	return name, nil
}

func migrate(ctx context.Context, dsn string, migrations fs.FS) error {
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer db.Close()
	p, err := goose.NewProvider(goose.DialectPostgres, db, migrations)
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate the template: %w", err)
	}
	return nil
}

func digest(fsys fs.FS) (string, error) {
	h := sha256.New()
	err := fs.WalkDir(fsys, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(fsys, path)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(h, "%s %d\n%s", path, len(data), data)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the migrations: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func execute(ctx context.Context, dsn, q string) error {
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, q)
	return err
}

// withDatabase replaces the database in a connection string of either form.
func withDatabase(dsn, name string) (string, error) {
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		u, err := url.Parse(dsn)
		if err != nil {
			return "", errors.New(PostgresEnv + " is not a URL") // the error would show the password
		}
		u.Path = "/" + name
		return u.String(), nil
	}
	return dsn + " dbname=" + name, nil // the last one counts
}
