package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kernexhq/kernex/agent/journal"
	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// maxChanges bounds the seam calls of one life (I11): a deployment takes about
// a hundred.
const maxChanges = 2000

// outcome is how a point may end.
type outcome struct {
	command  protocol.Command
	before   string // release that the scenario began on
	want     fleet.TargetState
	code     fleet.Code
	faulty   bool  // a file call failed: more endings are honest
	hostile  bool  // scripts were killed, again and again
	counters int64 // highest session that the disk had when the point began
	keys     []byte
}

// check is I1 to I12, after the agent has stopped.
func (d *device) check(o outcome) error {
	d.view.mu.Lock()
	problems := append([]string(nil), d.view.problems...)
	result, last, used := d.view.final(o.command.ID), d.view.lastState(), len(d.view.used)
	d.view.mu.Unlock()
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }

	want := o.before
	if result == nil {
		bad("I6: %s has no result", o.command.ID)
	} else {
		if result.State == fleet.TargetSucceeded {
			want = o.command.Deploy.Bundle.Release
		}
		if !o.honest(result) {
			bad("I6: the result is %s %s (%v), undisturbed it is %s %s", result.State, code(result), result.Error, o.want, o.code)
		}
	}
	current := d.current()
	if current != want {
		bad("I1: current is %.8q, want %.8q", current, want)
	}
	if current != "" {
		if info, err := bundle.Check(filepath.Join(d.dir, "releases", current)); err != nil {
			bad("I1: %v", err)
		} else if info.Release != current {
			bad("I1: release %s is in the directory of %s", info.Release, current)
		}
	}
	if last == nil || last.Release != current {
		bad("I6: the server has %+v, the device is on %s", last, current)
	}
	did, _ := os.ReadFile(d.did)
	line := fmt.Sprintf("ok %s %s\n", o.command.Deploy.Bundle.Version, o.command.Deploy.Deployment)
	switch n := bytes.Count(did, []byte(line)); {
	case n > 1:
		bad("I4: the deploy script succeeded %d times", n)
	case n == 0 && result != nil && result.State == fleet.TargetSucceeded:
		bad("I4: it succeeded without its deploy script")
	}
	for dir, most := range map[string]int{"staging": 0, "archives": 0, "releases": 2} {
		list, err := os.ReadDir(filepath.Join(d.dir, dir))
		if err != nil || len(list) > most {
			bad("I8, I10: %d entries in %s: %v %v", len(list), dir, list, err)
		}
	}
	if err := d.counters(last, o); err != nil {
		bad("I5: %v", err)
	}
	if err := d.identity(o.keys); err != nil {
		bad("I12: %v", err)
	}
	if used > 1 {
		bad("I12: the device had %d identities", used)
	}
	for _, p := range d.left() {
		bad("I7: %s is left", p)
	}
	if len(problems) == 0 {
		return nil
	}
	return errors.New(strings.Join(problems, "\n"))
}

// honest reports whether a result may be: that of an undisturbed device, or a
// return because of the interruption.
func (o outcome) honest(r *protocol.Result) bool {
	c := code(r)
	switch {
	case r.State == o.want && c == o.code, r.State == fleet.TargetRolledBack && c == fleet.CodeInterrupted:
		return true
	case o.hostile:
		return r.State != fleet.TargetRejected && r.State != fleet.TargetCancelled
	case o.faulty:
		return c != fleet.CodeInconsistent && (r.State == fleet.TargetFailed || r.State == fleet.TargetRolledBack)
	}
	return false
}

// counters reads the journal as the next start would.
func (d *device) counters(last *protocol.State, o outcome) error {
	text, err := os.ReadFile(journal.Path(d.dir))
	if err != nil {
		return err
	}
	copied := filepath.Join(d.root, "journal-copy")
	if err := os.WriteFile(copied, text, 0o600); err != nil {
		return err
	}
	j, err := journal.Open(&durable.FS{}, copied)
	if err != nil {
		return err
	}
	defer func() { _ = j.Close() }()
	var session, highest int64
	_, err = j.Read("session", &session)
	_, err2 := j.Read("update/highest_seq", &highest)
	switch {
	case errors.Join(err, err2) != nil:
		return errors.Join(err, err2)
	case session < o.counters || last != nil && session < last.Session:
		return fmt.Errorf("session is %d on disk, was %d, the server has %+v", session, o.counters, last)
	case last != nil && highest < last.HighestSeq:
		return fmt.Errorf("highest seq is %d, %d was reported", highest, last.HighestSeq)
	}
	return nil
}

// identity is that the key is readable, and still the one of this device.
func (d *device) identity(before []byte) error {
	path := filepath.Join(d.dir, "identity", "key.pem")
	key, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		return fmt.Errorf("mode %v, %w", info.Mode(), err)
	}
	if len(before) > 0 && !bytes.Equal(key, before) {
		return errors.New("the key has changed")
	}
	return nil
}

// left waits a little for what the kernel has killed to be gone.
func (d *device) left() []string {
	deadline := time.Now().Add(3 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		left := d.processes()
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		<-tick.C
	}
}

// processes lists what still runs for this device, by the environment that
// every program of a bundle gets.
func (d *device) processes() (left []string) {
	mark := []byte("KERNEX_STATE_DIR=" + filepath.Join(d.dir, "state") + "\x00")
	list, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range list {
		env, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || !bytes.Contains(env, mark) {
			continue
		}
		cmd, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		left = append(left, strings.ReplaceAll(string(cmd), "\x00", " "))
	}
	return left
}
