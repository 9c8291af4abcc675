// Package pgcluster runs a private Postgres cluster as a child process: made on
// first use, reachable over a Unix socket by this user (and root) only,
// restarted when it dies, and gone when this process is gone.
package pgcluster

import (
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
	"time"

	"github.com/lib/pq"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/child"
)

// Config says what to run.
type Config struct {
	// DataDir is the cluster's folder; it and its parents are made when
	// missing. Where the Postgres user cannot reach it (only when run as
	// root), the cluster is put under /var/lib/kernex instead.
	DataDir string
	// Fast gives up durability for speed: for tests only.
	Fast bool
	// MaxConnections is the server's limit; 0 means 100.
	MaxConnections int
	// Logger gets starts, restarts and stops. Postgres' own words go to
	// postgres.log in the cluster's folder.
	Logger zerolog.Logger
}

// Cluster is a running Postgres.
type Cluster struct {
	cfg    Config
	who    account
	in     install
	dir    string
	socket string
	lock   *os.File
	keeper *child.Keeper
	// patience is how long an orphan is left to end by itself.
	patience time.Duration

	stop    sync.Once
	stopErr error
}

// stopSteps is the shutdown: fast (roll back what is open, write a checkpoint),
// then immediate (recovery at the next start). Both fit into the 10 s that
// `kernex up` has in all.
var stopSteps = []child.Step{{Signal: syscall.SIGINT, Wait: 5 * time.Second}, {Signal: syscall.SIGQUIT, Wait: 2 * time.Second}}

// Start brings the cluster up, makes it first if DataDir is empty, and returns
// when it answers queries. A Postgres that an earlier, killed process left
// behind on the same folder is awaited for 10 s and then stopped. The context
// bounds the start only; Stop ends the cluster.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	return start(ctx, cfg, fallbackDir, orphanWait)
}

func start(ctx context.Context, cfg Config, fallback string, patience time.Duration) (_ *Cluster, err error) {
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 100
	}
	c := &Cluster{cfg: cfg, patience: patience}
	if c.who, err = findAccount(); err != nil {
		return nil, err
	}
	if c.dir, err = place(c.who, cfg.DataDir, fallback, cfg.Logger); err != nil {
		return nil, err
	}
	var stale string
	if c.lock, stale, err = lock(c.dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			removeSocketDir(c.socket)
			_ = c.lock.Close()
		}
	}()
	major := 0
	if initialised(c.dir) {
		if major, err = majorOf(c.dir); err != nil {
			return nil, err
		}
	}
	if c.in, err = findInstall(ctx, c.who, major); err != nil {
		return nil, err
	}
	if err = initialise(ctx, c.in, c.who, c.dir, cfg.Fast); err != nil {
		return nil, err
	}
	if err = c.who.own(c.dir); err != nil {
		return nil, err
	}
	if err = writeAccess(c.who, c.dir); err != nil {
		return nil, err
	}
	if c.socket, err = makeSocketDir(c.who); err != nil {
		return nil, err
	}
	if err = c.note(c.socket); err != nil {
		return nil, err
	}
	if c.keeper, err = child.Keep(ctx, "postgres", cfg.Logger, c.launch, stopSteps...); err != nil {
		return nil, err
	}
	removeSocketDir(stale) // whoever used it is gone now
	cfg.Logger.Info().Str("cluster_dir", c.dir).Str("socket_dir", c.socket).Int("version", c.in.major).
		Str("user", c.who.name).Msg("Postgres is ready")
	return c, nil
}

// launch starts the server once and waits until it answers.
func (c *Cluster) launch(ctx context.Context) (*child.Process, error) {
	if err := reclaim(ctx, c.dir, c.patience, c.cfg.Logger); err != nil {
		return nil, err
	}
	// A temporary folder may have been tidied while we ran.
	if err := os.Mkdir(c.socket, 0o700); err == nil {
		if err := c.who.own(c.socket); err != nil {
			return nil, err
		}
	}
	logFile, err := child.OpenLog(filepath.Join(c.dir, "postgres.log"))
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	if c.who.switched {
		if err := logFile.Chown(int(c.who.uid), int(c.who.gid)); err != nil {
			return nil, fmt.Errorf("give the log to Postgres: %w", err)
		}
	}
	cmd := exec.Command(c.in.path("postgres"), c.arguments()...)
	cmd.Dir = "/"
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = logFile.File, logFile.File
	cmd.SysProcAttr = c.who.procAttr()
	p, err := child.Start(cmd, syscall.SIGQUIT)
	if err != nil {
		return nil, err
	}
	if err := c.awaitReady(ctx, p); err != nil {
		p.Stop(stopSteps...)
		return nil, fmt.Errorf("%w; the end of its log: %s", err, logFile.Tail())
	}
	return p, nil
}

func (c *Cluster) arguments() []string {
	settings := []string{
		"listen_addresses=",
		"unix_socket_directories=" + c.socket,
		"unix_socket_permissions=0700",
		"max_connections=" + strconv.Itoa(c.cfg.MaxConnections),
		"random_page_cost=1.1", // flash, as everywhere today; 4 makes the planner shun indexes
		"jit=off",              // short queries only: compiling costs more than it saves
		"timezone=UTC", "log_timezone=UTC",
		"log_line_prefix=%m [%p] ",
		"logging_collector=off",
	}
	if c.cfg.Fast {
		settings = append(settings, "fsync=off", "synchronous_commit=off", "full_page_writes=off",
			"wal_level=minimal", "max_wal_senders=0", "shared_buffers=64MB")
	}
	args := []string{"-D", c.dir, "-p", port}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	return args
}

// awaitReady returns when the server answers a query. Recovery after a crash
// may take minutes; only ctx and the server's own end cut it short.
func (c *Cluster) awaitReady(ctx context.Context, p *child.Process) error {
	for {
		err := c.ping(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for Postgres: %w (last answer: %w)", ctx.Err(), err)
		case <-p.Done():
			return fmt.Errorf("the server ended while it started: %w", exitError(p))
		case <-time.After(poll):
		}
	}
}

func exitError(p *child.Process) error {
	if err := p.Err(); err != nil {
		return err
	}
	return errors.New("exit status 0")
}

func (c *Cluster) ping(ctx context.Context) error {
	db, err := sql.Open("postgres", c.DSN("postgres"))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	defer db.Close()
	return db.PingContext(ctx)
}

// DSN returns a connection string in key=value form for the superuser on one of
// the cluster's databases. It stays valid over restarts and holds no secret.
func (c *Cluster) DSN(dbname string) string {
	return fmt.Sprintf("host=%s port=%s user=%s dbname=%s sslmode=disable",
		quote(c.socket), port, superuser, quote(dbname))
}

// quote makes a value for a key=value connection string.
func quote(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'"
}

// CreateDatabase makes the database unless it exists.
func (c *Cluster) CreateDatabase(ctx context.Context, name string) error {
	db, err := sql.Open("postgres", c.DSN("postgres"))
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, "CREATE DATABASE "+pq.QuoteIdentifier(name))
	var pe *pq.Error
	if errors.As(err, &pe) && pe.Code == "42P04" { // duplicate_database
		return nil
	}
	if err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// Dir returns the folder the cluster really lives in.
func (c *Cluster) Dir() string { return c.dir }

// PID returns the postmaster's process id.
func (c *Cluster) PID() int { return c.keeper.PID() }

// Restarts counts how often Postgres died by itself and was started again.
func (c *Cluster) Restarts() int { return c.keeper.Restarts() }

// Done is closed when the cluster was stopped for good. A Postgres that dies by
// itself does not close it: it is restarted.
func (c *Cluster) Done() <-chan struct{} { return c.keeper.Done() }

// Stop shuts the cluster down (fast, after 5 s immediate, after 7 s or when ctx
// ends by force, which is the only error) and waits for it. It may be called
// more than once.
func (c *Cluster) Stop(ctx context.Context) error {
	c.stop.Do(func() {
		c.stopErr = c.keeper.Stop(ctx)
		removeSocketDir(c.socket)
		_ = c.note("")
		_ = c.lock.Close()
		c.cfg.Logger.Info().Str("cluster_dir", c.dir).Msg("Postgres stopped")
	})
	return c.stopErr
}
