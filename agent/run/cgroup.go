package run

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxTasks bounds the processes and threads of one program, the shim's own few
// included: enough for a thread pool on each of a hundred cores, and half of
// what the agent's unit allows for everything together.
const maxTasks = 512

// groupPrefix begins the names of our cgroups: kernex-<agent's pid>-<number>.
const groupPrefix = "kernex-"

// emptyWait bounds the wait for a cgroup to get empty after its program's end.
const emptyWait = 2 * time.Second

// taskLimit makes cgroups that bound the number of processes, below dir.
type taskLimit struct{ dir string }

// findTaskLimit looks for a pids controller, of version 1 or 2, below whose
// cgroup of this process new ones can be made. An error says why there is none.
func findTaskLimit(mountinfo, cgroup string) (*taskLimit, error) {
	dir, unified := ownGroup(mountinfo, cgroup)
	if dir == "" {
		return nil, errors.New("no pids controller is mounted")
	}
	if unified {
		if err := enablePids(dir); err != nil {
			return nil, err
		}
	}
	l := &taskLimit{dir: dir}
	l.sweep()
	probe, err := l.make()
	if err != nil {
		return nil, err
	}
	probe.remove()
	return l, nil
}

// ownGroup returns this process's directory in the hierarchy that has the pids
// controller, from the texts of /proc/self/mountinfo and /proc/self/cgroup.
func ownGroup(mountinfo, cgroup string) (dir string, unified bool) {
	for m := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(m, " - ")
		f, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(kind) < 3 {
			continue
		}
		root, at := f[3], f[4]
		one := kind[0] == "cgroup" && slices.Contains(strings.Split(kind[2], ","), "pids")
		if !one && kind[0] != "cgroup2" {
			continue
		}
		for g := range strings.Lines(cgroup) {
			part := strings.SplitN(strings.TrimSpace(g), ":", 3)
			if len(part) != 3 || one != slices.Contains(strings.Split(part[1], ","), "pids") || !one && part[0] != "0" {
				continue
			}
			rel, err := filepath.Rel(root, part[2])
			if err != nil || !filepath.IsLocal(rel) {
				continue // outside of what is mounted here
			}
			dir := filepath.Join(at, rel)
			if one {
				return dir, false
			}
			if list, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err == nil && hasWord(list, "pids") {
				return dir, true
			}
		}
	}
	return "", false
}

func hasWord(text []byte, word string) bool {
	return slices.ContainsFunc(bytes.Fields(text), func(w []byte) bool { return string(w) == word })
}

// enablePids lets children of a version 2 cgroup be limited. That needs a
// cgroup without processes of its own: in one that a service manager has
// delegated to us we move down into a child.
func enablePids(dir string) error {
	control := filepath.Join(dir, "cgroup.subtree_control")
	if now, err := os.ReadFile(control); err == nil && hasWord(now, "pids") {
		return nil
	}
	err := writeKnob(control, "+pids")
	if !errors.Is(err, syscall.EBUSY) || !delegated(dir) {
		return err
	}
	own := filepath.Join(dir, "agent")
	if err := os.Mkdir(own, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make a cgroup for the agent: %w", err)
	}
	if err := writeKnob(filepath.Join(own, "cgroup.procs"), "0"); err != nil {
		return err
	}
	return writeKnob(control, "+pids")
}

// delegated reports whether systemd has handed this cgroup over (Delegate=).
func delegated(dir string) bool {
	var b [8]byte
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		if n, err := unix.Getxattr(dir, name, b[:]); err == nil && string(b[:n]) == "1" {
			return true
		}
	}
	return false
}

func writeKnob(path, value string) error {
	if err := os.WriteFile(path, []byte(value), 0); err != nil { //nolint:gosec // a kernel's file; never made
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

// sweepAge is how old a cgroup is that nobody is about to use: one is entered
// right after it was made.
const sweepAge = time.Minute

// sweep removes what agents that were killed have left. A cgroup that is in use
// is not empty and stays, and so does a young one, which may be about to be
// used. Whether the process in its name lives tells nothing: ids come again, and
// another PID namespace has its own.
func (l *taskLimit) sweep() {
	old, _ := filepath.Glob(filepath.Join(l.dir, groupPrefix+"*"))
	for _, dir := range old {
		if info, err := os.Stat(dir); err != nil || time.Since(info.ModTime()) < sweepAge {
			continue
		}
		_ = syscall.Rmdir(dir)
	}
}

// group is the cgroup of one program.
type group struct{ dir string }

// groups numbers the cgroups of this process.
var groups atomic.Int64

func (l *taskLimit) make() (*group, error) {
	g := &group{}
	for {
		g.dir = filepath.Join(l.dir, fmt.Sprintf("%s%d-%d", groupPrefix, os.Getpid(), groups.Add(1)))
		err := os.Mkdir(g.dir, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue // of a process in another namespace that has our id
		}
		if err != nil {
			return nil, fmt.Errorf("make a cgroup: %w", err)
		}
		break
	}
	if err := writeKnob(filepath.Join(g.dir, "pids.max"), strconv.Itoa(maxTasks)); err != nil {
		_ = syscall.Rmdir(g.dir)
		return nil, err
	}
	return g, nil
}

// procs is the file through which a process enters.
func (g *group) procs() string { return filepath.Join(g.dir, "cgroup.procs") }

// remove kills what is left in the group and removes it. With a PID namespace
// nothing is: this is for where there is none.
func (g *group) remove() {
	deadline := time.Now().Add(emptyWait)
	for first := true; ; first = false {
		if err := syscall.Rmdir(g.dir); err == nil || errors.Is(err, syscall.ENOENT) || time.Now().After(deadline) {
			return
		}
		if first {
			_ = writeKnob(filepath.Join(g.dir, "pids.max"), "0") // nothing new
		}
		left, _ := os.ReadFile(g.procs())
		for _, pid := range strings.Fields(string(left)) {
			if n, err := strconv.Atoi(pid); err == nil && n > 0 {
				_ = syscall.Kill(n, syscall.SIGKILL) // it may just have ended
			}
		}
		time.Sleep(5 * time.Millisecond) // the kernel has no wake-up for this in version 1
	}
}
