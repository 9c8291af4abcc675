package pgcluster

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

// helperDir names the environment variable that turns the test binary into a
// program that starts a cluster and waits to be killed.
const helperDir = "PGCLUSTER_TEST_HELPER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(helperDir); dir != "" {
		c, err := Start(context.Background(), Config{DataDir: dir, Fast: true, Logger: zerolog.Nop()})
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println(c.PID())
		select {}
	}
	goleak.VerifyTestMain(m)
}

// run starts a fast cluster in dir and stops it with the test.
func run(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	cfg.Fast = true
	c, err := start(t.Context(), cfg, filepath.Join(openDir(t), "fallback"), 200*time.Millisecond)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return c
}

// openDir is a temporary folder that every user can pass through; the parent
// of t.TempDir is 0700.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pgcluster-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

func dataDir(t *testing.T) string {
	t.Helper()
	return filepath.Join(openDir(t), "sub", "pg")
}

func query(t *testing.T, c *Cluster, db, q string) string {
	t.Helper()
	s, err := tryQuery(c, db, q)
	if err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return s
}

func tryQuery(c *Cluster, name, q string) (string, error) {
	db, err := sql.Open("postgres", c.DSN(name))
	if err != nil {
		return "", err
	}
	defer db.Close()
	var s string
	err = db.QueryRow(q).Scan(&s)
	return s, err
}

// within waits until ok, checking often.
func within(t *testing.T, d time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %v: %s", d, what)
		case <-tick.C:
		}
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestAnEmptyFolderBecomesAClusterThatKeepsItsData(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	c := run(t, Config{DataDir: dir, Logger: zerolog.Nop()})
	for setting, want := range map[string]string{
		"server_encoding": "UTF8", "lc_collate": "C", "jit": "off", "random_page_cost": "1.1",
		"listen_addresses": "", "max_connections": "100", "TimeZone": "UTC",
	} {
		if got := query(t, c, "postgres", "SHOW "+setting); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	for range 2 { // the second time it exists
		if err := c.CreateDatabase(t.Context(), "kernex"); err != nil {
			t.Fatal(err)
		}
	}
	query(t, c, "kernex", "CREATE TABLE t AS SELECT 'kept' AS v; SELECT v FROM t")
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket folder is still there: %v", err)
	}
	c = run(t, Config{DataDir: dir, Logger: zerolog.Nop()})
	if got := query(t, c, "kernex", "SELECT v FROM t"); got != "kept" {
		t.Errorf("after a restart: %q", got)
	}
}

func TestTheServerDoesNotRunAsRootAndItsSocketIsPrivate(t *testing.T) {
	t.Parallel()
	c := run(t, Config{DataDir: dataDir(t), Logger: zerolog.Nop()})
	info, err := os.Stat(fmt.Sprintf("/proc/%d", c.PID()))
	if err != nil {
		t.Fatal(err)
	}
	if uid := info.Sys().(*syscall.Stat_t).Uid; uid == 0 || uid != c.who.uid {
		t.Errorf("the server runs as user id %d", uid)
	}
	info, err = os.Stat(c.socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o700 || info.Sys().(*syscall.Stat_t).Uid != c.who.uid {
		t.Errorf("socket folder: %v, user id %d", info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
	}
}

func TestAKilledServerComesBackAndAnswersOnTheSameDSN(t *testing.T) {
	t.Parallel()
	c := run(t, Config{DataDir: dataDir(t), Logger: zerolog.New(zerolog.NewTestWriter(t))})
	// Fast clusters lose the last commits in a crash unless asked not to.
	query(t, c, "postgres", "SET synchronous_commit = on; CREATE TABLE t AS SELECT 'kept' AS v; SELECT v FROM t")
	old := c.PID()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	within(t, 30*time.Second, "queries work again", func() bool {
		v, err := tryQuery(c, "postgres", "SELECT v FROM t")
		return err == nil && v == "kept" && c.Restarts() == 1 // the old backend may answer once more
	})
	if c.PID() == old {
		t.Error("the process id is the old one")
	}
}

func TestTheServerDiesWithAKilledParentAndTheNextStartWorks(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the helper says %q", line)
	}
	if _, err := Start(t.Context(), Config{DataDir: dir, Fast: true, Logger: zerolog.Nop()}); err == nil ||
		!strings.Contains(err.Error(), "another process uses the cluster") {
		t.Errorf("a second user of a live cluster: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	c := run(t, Config{DataDir: dir, Logger: zerolog.Nop()})
	if alive(pid) && len(processesIn(c.dir)) > 0 && c.PID() == pid {
		t.Error("the old server lives on")
	}
	query(t, c, "postgres", "SELECT 'ok'")
}

func TestAnOrphanThatDoesNotEndIsStopped(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	c := run(t, Config{DataDir: dir, Logger: zerolog.Nop()})
	query(t, c, "postgres", "CREATE TABLE t AS SELECT 'kept' AS v; SELECT v FROM t")
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The same server, but nobody's child that we would stop.
	socket, err := makeSocketDir(c.who)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeSocketDir(socket) })
	c.socket = socket
	orphan := exec.Command(c.in.path("postgres"), c.arguments()...)
	orphan.Dir, orphan.Env, orphan.SysProcAttr = "/", environment(), c.who.procAttr()
	if err := orphan.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = orphan.Wait(); close(ended) }()
	within(t, 20*time.Second, "the orphan answers", func() bool { return c.ping(t.Context()) == nil })

	var logged syncBuffer
	next := run(t, Config{DataDir: dir, Logger: zerolog.New(&logged)})
	<-ended
	if got := query(t, next, "postgres", "SELECT v FROM t"); got != "kept" {
		t.Errorf("after the orphan: %q", got)
	}
	if !strings.Contains(logged.String(), "stopping an earlier Postgres") {
		t.Errorf("the log does not tell: %s", logged.String())
	}
}

func TestAStalePidFileIsRemovedEvenIfItsIdLives(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	c := run(t, Config{DataDir: dir, Logger: zerolog.Nop()})
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	leftover, err := makeSocketDir(c.who)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.dir+".lock", []byte(leftover), 0o600); err != nil {
		t.Fatal(err)
	}
	pidFile := fmt.Sprintf("%d\n%s\n1700000000\n5432\n%s\n\n  5432001 3\nready\n", os.Getppid(), c.dir, leftover)
	if err := os.WriteFile(filepath.Join(c.dir, "postmaster.pid"), []byte(pidFile), 0o600); err != nil {
		t.Fatal(err)
	}
	c = run(t, Config{DataDir: dir, Logger: zerolog.Nop()})
	query(t, c, "postgres", "SELECT 'ok'")
	if _, err := os.Stat(leftover); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old socket folder is still there: %v", err)
	}
}

func TestAClosedParentMovesTheClusterAndSaysWhich(t *testing.T) {
	t.Parallel()
	closed := filepath.Join(openDir(t), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	var logged syncBuffer
	cfg := Config{DataDir: filepath.Join(closed, "pg"), Fast: true, Logger: zerolog.New(&logged)}
	fallback := filepath.Join(openDir(t), "fallback")
	for i := range 2 {
		c, err := start(t.Context(), cfg, fallback, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		moved := os.Geteuid() == 0 // anybody else owns the folder and can reach it
		if got := strings.HasPrefix(c.Dir(), fallback); got != moved {
			t.Errorf("the cluster is in %s", c.Dir())
		}
		if moved && !strings.Contains(logged.String(), `"closed_parent":"`+closed+`"`) {
			t.Errorf("the log does not name the parent: %s", logged.String())
		}
		if i == 0 {
			query(t, c, "postgres", "CREATE TABLE t AS SELECT 'kept' AS v; SELECT v FROM t")
		} else if got := query(t, c, "postgres", "SELECT v FROM t"); got != "kept" {
			t.Errorf("second start: %q", got)
		}
		if err := c.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The parent opens: the data must not seem lost.
		if err := os.Chmod(closed, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFailedStartTellsTheEndOfTheServersLog(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	c := run(t, Config{DataDir: dir, Logger: zerolog.Nop()})
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(c.dir, "postgresql.conf")
	if err := os.WriteFile(conf, []byte("no_such_setting = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Config{DataDir: dir, Fast: true, Logger: zerolog.Nop()})
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("error: %v", err)
	}
}

func TestAFolderWithOtherThingsIsRefused(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(openDir(t), "pictures")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "photo.jpg"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Config{DataDir: dir, Logger: zerolog.Nop()})
	if err == nil || !strings.Contains(err.Error(), "is not empty and not a Postgres data folder") {
		t.Errorf("error: %v", err)
	}
}

func TestAnUnfinishedInitIsDoneAgain(t *testing.T) {
	t.Parallel()
	dir := dataDir(t)
	if err := os.MkdirAll(filepath.Join(dir+".init", "base"), 0o755); err != nil {
		t.Fatal(err)
	}
	query(t, run(t, Config{DataDir: dir, Logger: zerolog.Nop()}), "postgres", "SELECT 'ok'")
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
