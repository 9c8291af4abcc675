package crashtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// syscalls are the classes at which the unmodified agent is killed: what changes
// the disk, makes processes or talks to the network. A name that this machine
// does not have is left out by the question mark.
var syscalls = []string{
	"openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat",
	"symlink", "symlinkat", "readlinkat", "chmod", "fchmod", "fchmodat", "ftruncate", "flock", "getdents64", "close", "clone", "clone3", "vfork",
	"execve", "waitid", "wait4", "kill", "pidfd_open", "pidfd_send_signal", "connect", "socket", "prctl", "exit_group",
}

// strace runs the agent under strace, which is its child: signals and the exit
// status are the agent's own.
func (d *device) strace(log, expressions string, argv ...string) program {
	args := []string{"strace", "-D", "-f", "-qq", "-o", log}
	for _, e := range strings.Fields(expressions) {
		args = append(args, "-e", e)
	}
	return program{argv: append(append(args, "--"), argv...)}
}

var traced = regexp.MustCompile(`(?m)^(\d+) +(?:<\.\.\. )?(\w+)`)

// called counts the calls in a log of strace, the most by one thread of each.
func called(log string) (most map[string]int) {
	text, _ := os.ReadFile(log)
	most = map[string]int{}
	each := map[string]int{}
	for line := range strings.Lines(string(text)) {
		if m := traced.FindStringSubmatch(line); m != nil && !strings.Contains(line, " resumed>") {
			key := m[1] + " " + m[2]
			each[key]++
			most[m[2]] = max(most[m[2]], each[key])
		}
	}
	return most
}

// syscallPoint kills at the n-th call of one kind by any thread. It reports
// whether anything was killed.
func (d *device) syscallPoint(s scenario, syscall string, n int, env []string, argv ...string) (bool, error) {
	o, err := d.begin(s)
	if err != nil {
		return false, err
	}
	log := filepath.Join(d.root, "strace")
	_ = os.Remove(log)
	inject := d.strace(log, fmt.Sprintf("trace=%s inject=%s:signal=KILL:when=%d", syscall, syscall, n), argv...)
	inject.env = env
	ended, err := d.lives(inject, program{env: env, argv: argv})
	if strings.Contains(d.output.String(), "strace: ") {
		return false, nil // it has lost a process that ended, and with it all others
	}
	// A script that is killed fails, as often as it is tried.
	o.faulty, o.hostile = true, ended == 0 || strings.Contains(d.output.String(), "killed by signal killed")
	if err == nil {
		err = d.check(o)
	}
	return called(log)[syscall] >= n, err
}

func TestNoKillAtASystemCallBreaksADevice(t *testing.T) {
	t.Parallel()
	count := newCounter(t)
	share, most := 30, 12
	if long {
		share, most = 1, 25
	}
	count.workers(t, func(ctx context.Context, d *device, s scenario, random *rand.Rand) {
		o, err := d.begin(s)
		log := filepath.Join(d.root, "strace")
		if err == nil {
			names := strings.Join(syscalls, ",?")
			_, err = d.lives(d.strace(log, "trace=?"+names, binaries.agent()))
		}
		if err == nil {
			err = d.check(o)
		}
		if err != nil {
			count.violation("syscall", s.name+", undisturbed", err, d.output)
			return
		}
		var points []string
		for name, n := range called(log) {
			// Threads share the work, another way each time; the first calls of
			// each are the ones that are always there.
			if name == "exit_group" && !long {
				continue // each script of the device is killed, each return pauses
			}
			for i := range min(n, most) {
				points = append(points, fmt.Sprintf("%s %d", name, i+1))
			}
		}
		slices.Sort(points)
		for i := random.IntN(share); i < len(points) && ctx.Err() == nil; i += share {
			var name string
			var n int
			if _, err := fmt.Sscan(points[i], &name, &n); err != nil || !slices.Contains(syscalls, name) {
				continue
			}
			fired, err := d.syscallPoint(s, name, n, nil, binaries.agent())
			if fired {
				count.add("syscall", 1)
			}
			if err != nil {
				count.violation("syscall", fmt.Sprintf("%s, kill at %s", s.name, points[i]), err, d.output)
			}
		}
	})
}

// The test of the test: kills at system calls find a missing record too.
func TestAKillAtASystemCallFindsAMissingRecord(t *testing.T) {
	t.Parallel()
	found := newCounter(t)
	found.expected = true
	s := newServer(t)
	b := s.bundles(t)
	d := newDevice(t, s, b, "mutant")
	d.waits = shortPatience
	for n := 1; n <= 40 && found.violations == 0; n++ {
		for _, name := range []string{"symlinkat", "renameat", "fsync"} {
			fired, err := d.syscallPoint(b.scenarios()[1], name, n, []string{"KERNEX_MUTATION=drop:APPLYING"}, binaries.fault())
			if fired {
				found.add("syscall", 1)
			}
			if err != nil {
				found.violation("syscall", fmt.Sprintf("kill at %s %d", name, n), err, d.output)
			}
		}
	}
	if found.violations == 0 {
		t.Errorf("%d kills found nothing", found.points["syscall"])
	}
}
