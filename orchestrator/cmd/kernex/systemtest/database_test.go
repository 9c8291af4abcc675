package systemtest

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/testkit"
)

// database is a Postgres server on a host, reached over TLS with a password, as
// a managed one is.
type database struct {
	t    *testing.T
	host *host
	dir  string // the cluster
	bin  string // of the server's programs
	ca   string
	who  *user.User
	proc *process
}

const (
	databasePassword = "a password that only this test has"
	databaseRole     = "kernex" // no superuser
)

// startDatabase makes a cluster with one empty database, kernex.
func startDatabase(t *testing.T, h *host, ca *authority) *database {
	t.Helper()
	d := &database{t: t, host: h, bin: serverPrograms(t), ca: ca.file}
	var err error
	if d.who, err = user.Lookup("postgres"); err != nil {
		if d.who, err = user.Lookup("nobody"); err != nil {
			t.Fatal("Postgres does not run as root, and neither user postgres nor nobody exists")
		}
	}
	parent := dataDir(t)
	d.dir = filepath.Join(parent, "cluster")
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(parent, "password")
	if err := os.WriteFile(password, []byte(databasePassword), 0o600); err != nil {
		t.Fatal(err)
	}
	d.own(password, d.dir)
	init := d.command("initdb", "--pgdata", d.dir, "--username", "postgres", "--pwfile", password, "--encoding", "UTF8", "--locale", "C",
		"--auth-local", "reject", "--auth-host", "scram-sha-256", "--no-sync")
	if out, err := init.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	hba := filepath.Join(d.dir, "pg_hba.conf")
	if err := os.WriteFile(hba, []byte("hostssl all all "+network+"0/24 scram-sha-256\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cert, key := ca.issue("postgres", h.addr)
	d.own(hba, cert, key)
	d.args(cert, key)
	d.start()
	admin := d.open("postgres", "postgres")
	for _, q := range []string{"CREATE ROLE " + databaseRole + " LOGIN PASSWORD " + pq.QuoteLiteral(databasePassword), "CREATE DATABASE kernex OWNER " + databaseRole} {
		if _, err := admin.ExecContext(t.Context(), q); err != nil {
			t.Fatalf("%.30s: %v", q, err)
		}
	}
	return d
}

// serverPrograms is the folder of the newest Postgres.
func serverPrograms(t *testing.T) string {
	t.Helper()
	dirs, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		t.Fatal(err)
	}
	if len(dirs) > 0 {
		return slices.Max(dirs)
	}
	p, err := exec.LookPath("initdb")
	if err == nil {
		p, err = filepath.EvalSymlinks(p) // the other programs are beside the real one
	}
	if err != nil {
		t.Fatal("no Postgres in /usr/lib/postgresql or PATH; on Debian: apt-get install postgresql")
	}
	return filepath.Dir(p)
}

func (d *database) own(paths ...string) {
	d.t.Helper()
	uid, err := strconv.Atoi(d.who.Uid)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, p := range paths {
		if err := os.Chown(p, uid, -1); err != nil {
			d.t.Fatal(err)
		}
	}
}

// command runs one of the server's programs on its host, as its user.
func (d *database) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + netnsDir + d.host.name, "--setuid", d.who.Uid, "--setgid", d.who.Gid, "--", filepath.Join(d.bin, program)}, args...)...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	return cmd
}

// args writes the settings. No crash of a machine is part of these tests, so
// the disk is not waited for.
func (d *database) args(cert, key string) {
	d.t.Helper()
	conf := fmt.Sprintf("listen_addresses = '%s'\nunix_socket_directories = ''\nssl = on\nssl_cert_file = '%s'\nssl_key_file = '%s'\nfsync = off\nfull_page_writes = off\nmax_connections = 100\n", d.host.addr, cert, key)
	f, err := os.OpenFile(filepath.Join(d.dir, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	_, err = f.WriteString(conf)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// start runs the server until the test ends and waits until it answers.
func (d *database) start() {
	d.t.Helper()
	d.proc = start(d.t, "postgres", d.command("postgres", "-D", d.dir))
	proc := d.proc
	d.t.Cleanup(func() { proc.stop(syscall.SIGINT) }) // SIGTERM would wait for clients
	db := d.open("postgres", "postgres")
	testkit.Eventually(d.t, patience, func() error { return db.PingContext(d.t.Context()) })
}

// kill ends the server as a crash does.
func (d *database) kill() { d.proc.stop(syscall.SIGQUIT) }

// dsn is a connection string, with the password in it: for this test only.
func (d *database) dsn(role, name string) string {
	return fmt.Sprintf("host=%s port=5432 user=%s password='%s' dbname=%s sslmode=verify-full sslrootcert=%s connect_timeout=5", d.host.addr, role, databasePassword, name, d.ca)
}

func (d *database) open(role, name string) *sql.DB {
	d.t.Helper()
	db, err := sql.Open("postgres", d.dsn(role, name))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = db.Close() })
	return db
}

// number asks the database name for one number.
func (d *database) number(name, q string, args ...any) (n int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 20*time.Second)
	defer cancel()
	db, err := sql.Open("postgres", d.dsn("postgres", name))
	if err != nil {
		d.t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(ctx, q, args...).Scan(&n); err != nil {
		d.t.Fatalf("%s: %v", q, err)
	}
	return n
}

// tool runs one of Postgres' client programs against the server.
func (d *database) tool(program string, args ...string) {
	d.t.Helper()
	cmd := exec.Command(filepath.Join(d.bin, program), args...)
	cmd.Env = append(os.Environ(), "PGHOST="+d.host.addr, "PGUSER=postgres", "PGPASSWORD="+databasePassword, "PGSSLMODE=verify-full", "PGSSLROOTCERT="+d.ca)
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
}
