package pgcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// How long an earlier Postgres of the same folder is left to end by itself (its
// parent was killed, and the kernel has told it), and then how long it gets
// after each signal.
const (
	orphanWait  = 10 * time.Second
	orphanGrace = 5 * time.Second
	poll        = 20 * time.Millisecond
)

// reclaim waits until no process works in dir, stopping what does not go by
// itself, and removes the postmaster.pid that it left.
//
// The pid file alone proves nothing (ids are reused after a reboot), while
// every Postgres process has the data folder as its working directory; also a
// backend whose postmaster was killed, which Postgres' own check would trip on.
func reclaim(ctx context.Context, dir string, patience time.Duration, log zerolog.Logger) error {
	if pids := processesIn(dir); len(pids) > 0 {
		log.Warn().Ints("pids", pids).Str("cluster_dir", dir).Msg("an earlier Postgres still runs on this folder; waiting for it to end")
		if err := evict(ctx, dir, patience, log); err != nil {
			return err
		}
	}
	err := os.Remove(filepath.Join(dir, "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove a stale postmaster.pid: %w", err)
	}
	log.Info().Str("cluster_dir", dir).Msg("removed the pid file of a Postgres that did not end in order")
	return nil
}

func evict(ctx context.Context, dir string, patience time.Duration, log zerolog.Logger) error {
	steps := []struct {
		sig  syscall.Signal // 0: only wait
		wait time.Duration
	}{{0, patience}, {syscall.SIGINT, orphanGrace}, {syscall.SIGQUIT, orphanGrace}, {syscall.SIGKILL, orphanGrace}}
	for _, s := range steps {
		if s.sig != 0 {
			pids := processesIn(dir)
			log.Warn().Ints("pids", pids).Stringer("signal", s.sig).Msg("stopping an earlier Postgres")
			for _, pid := range pids {
				// Backends take SIGINT as "cancel the query", so a fast
				// shutdown goes to the postmaster alone; orphaned backends
				// end at the next step.
				if s.sig == syscall.SIGINT && pid != postmaster(dir) {
					continue
				}
				_ = syscall.Kill(pid, s.sig)
			}
		}
		deadline := time.NewTimer(s.wait)
		for gone := false; !gone; {
			if len(processesIn(dir)) == 0 {
				deadline.Stop()
				return nil
			}
			select {
			case <-ctx.Done():
				deadline.Stop()
				return fmt.Errorf("wait for an earlier Postgres: %w", ctx.Err())
			case <-deadline.C:
				gone = true
			case <-time.After(poll):
			}
		}
	}
	return fmt.Errorf("an earlier Postgres (%v) on %s does not end", processesIn(dir), dir)
}

// postmaster returns the id in dir's pid file, 0 if there is none.
func postmaster(dir string) int {
	raw, err := os.ReadFile(filepath.Join(dir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil {
		return 0
	}
	return pid
}

// processesIn lists the running Postgres processes whose working directory is
// dir. A shell that somebody left there is not one of them.
func processesIn(dir string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if cwd, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd")); err != nil || cwd != dir {
			continue
		}
		if exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe")); err != nil || !isPostgres(exe) {
			continue
		}
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

func isPostgres(exe string) bool {
	// The kernel adds " (deleted)" after an upgrade of the package.
	return strings.TrimSuffix(filepath.Base(exe), " (deleted)") == "postgres"
}

// Discard ends what still runs on a Fast cluster whose process is dead and
// removes its socket folder; the caller then removes the data. A cluster in use
// is left alone.
func Discard(dir string) error {
	f, socket, err := lock(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, pid := range processesIn(dir) {
		_ = syscall.Kill(pid, syscall.SIGQUIT)
	}
	removeSocketDir(socket)
	return nil
}
