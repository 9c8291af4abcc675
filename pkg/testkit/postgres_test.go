package testkit_test

import (
	"database/sql"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/pkg/testkit"
)

// helperEnv turns the test binary into a process that starts a database server
// and ends without stopping it.
const helperEnv = "TESTKIT_TEST_HELPER"

func open(t testing.TB, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("postgres", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestEachTestHasADatabaseOfItsOwnWithTheSchema(t *testing.T) {
	t.Parallel()
	one, two := open(t, testkit.Postgres(t)), open(t, testkit.Postgres(t))
	if _, err := one.Exec("CREATE TABLE only_here (id int)"); err != nil {
		t.Fatal(err)
	}
	if _, err := two.Exec("SELECT * FROM only_here"); err == nil {
		t.Error("the second database sees the first one's table")
	}
	var n int
	if err := two.QueryRow("SELECT count(*) FROM devices").Scan(&n); err != nil || n != 0 {
		t.Errorf("devices: %d, %v", n, err)
	}
}

func TestAnEmptyDatabaseHasNoTables(t *testing.T) {
	t.Parallel()
	var n int
	db := open(t, testkit.EmptyPostgres(t))
	if err := db.QueryRow("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").Scan(&n); err != nil || n != 0 {
		t.Errorf("tables: %d, %v", n, err)
	}
}

func TestTheDatabaseIsDroppedWithItsTest(t *testing.T) {
	t.Parallel()
	var name string
	t.Run("inner", func(t *testing.T) {
		db := open(t, testkit.Postgres(t))
		if err := db.QueryRow("SELECT current_database()").Scan(&name); err != nil {
			t.Fatal(err)
		}
	})
	var n int
	db := open(t, testkit.EmptyPostgres(t))
	if err := db.QueryRow("SELECT count(*) FROM pg_database WHERE datname = $1", name).Scan(&n); err != nil || n != 0 {
		t.Errorf("databases named %q: %d, %v", name, n, err)
	}
}

func TestTheFoldersOfADeadTestProcessAreRemovedByTheNext(t *testing.T) {
	t.Parallel()
	if os.Getenv(helperEnv) != "" {
		testkit.EmptyPostgres(t)
		os.Exit(0) // before Main can tidy up
	}
	dir, err := os.MkdirTemp("", "kt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), helperEnv+"=1", testkit.PostgresEnv+"=", "TMPDIR="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("helper: %v: %s", err, out)
		}
	}
	for _, prefix := range []string{"kernex-test-pg-", "kernex-pg-"} {
		left, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
		if err != nil || len(left) != 1 {
			t.Errorf("folders left by two processes: %s, %v", strings.Join(left, " "), err)
		}
	}
}

func TestMain(m *testing.M) { testkit.Main(m) }

func TestAnAuditOfGoroutinesOverlooksTheSharedServer(t *testing.T) {
	ignore := append(testkit.SharedServers(), goleak.IgnoreCurrent())
	testkit.EmptyPostgres(t)
	goleak.VerifyNone(t, ignore...)
}
