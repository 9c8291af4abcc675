package child_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/pkg/child"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sh starts a shell and waits for its first line, so that its traps are set.
func sh(t *testing.T, script string) *child.Process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdout = w
	p, err := child.Start(cmd, syscall.SIGKILL)
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	if _, err := r.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAChildThatIgnoresASignalGetsTheNext(t *testing.T) {
	t.Parallel()
	p := sh(t, "trap '' TERM; trap 'exit 7' INT; echo; while :; do sleep 0.01; done")
	p.Stop(child.Step{Signal: syscall.SIGTERM, Wait: 50 * time.Millisecond}, child.Step{Signal: syscall.SIGINT, Wait: time.Minute})
	var exit *exec.ExitError
	if !errors.As(p.Err(), &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit: %v", p.Err())
	}
}

func TestAChildThatIgnoresAllIsKilledWithItsGroup(t *testing.T) {
	t.Parallel()
	p := sh(t, "trap '' TERM; sleep 1000 & echo; wait; sleep 1000")
	p.Stop(child.Step{Signal: syscall.SIGTERM, Wait: 20 * time.Millisecond})
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal after the end: %v", err)
	}
	eventually(t, func() bool { return errors.Is(syscall.Kill(-p.PID(), 0), syscall.ESRCH) || onlyZombies(p.PID()) })
}

// onlyZombies says that no process of the group runs: where PID 1 does not
// reap, ended grandchildren stay in the table.
func onlyZombies(group int) bool {
	out, err := exec.Command("ps", "-eo", "pgid=,stat=").Output()
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 2 && f[0] == strconv.Itoa(group) && !strings.HasPrefix(f[1], "Z") {
			return false
		}
	}
	return true
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatal("not within 20 s")
		case <-tick.C:
		}
	}
}

func TestAProgramThatDoesNotExistIsAnError(t *testing.T) {
	t.Parallel()
	if _, err := child.Start(exec.Command("/no/such/program"), syscall.SIGKILL); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error: %v", err)
	}
}

func TestAKeptChildIsStartedAgainUntilStopped(t *testing.T) {
	t.Parallel()
	k, err := child.Keep(t.Context(), "sleeper", zerolog.Nop(), func(context.Context) (*child.Process, error) {
		return child.Start(exec.Command("sleep", "1000"), syscall.SIGKILL)
	}, child.Step{Signal: syscall.SIGTERM, Wait: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for want := 1; want <= 2; want++ {
		if err := syscall.Kill(k.PID(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { return k.Restarts() == want })
	}
	for range 2 {
		if err := k.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
	<-k.Done()
}

func TestAKeeperThatCannotRestartItsChildCanStillBeStopped(t *testing.T) {
	t.Parallel()
	var tries atomic.Int32
	k, err := child.Keep(t.Context(), "broken", zerolog.Nop(), func(context.Context) (*child.Process, error) {
		if tries.Add(1) > 1 {
			return nil, errors.New("no space")
		}
		return child.Start(exec.Command("true"), syscall.SIGKILL)
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return tries.Load() > 2 })
	if err := k.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAFailedFirstStartIsReturned(t *testing.T) {
	t.Parallel()
	bad := errors.New("bad")
	_, err := child.Keep(t.Context(), "x", zerolog.Nop(), func(context.Context) (*child.Process, error) { return nil, bad })
	if !errors.Is(err, bad) {
		t.Errorf("error: %v", err)
	}
}

func TestTheTailOfALogIsWhatThisStartWrote(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	for _, word := range []string{"first", "second"} {
		l, err := child.OpenLog(path)
		if err != nil {
			t.Fatal(err)
		}
		if l.Tail() != "" {
			t.Errorf("before: %q", l.Tail())
		}
		if _, err := l.WriteString(strings.Repeat("x", 3000) + "\n" + word + "\n"); err != nil {
			t.Fatal(err)
		}
		if got := l.Tail(); !strings.HasSuffix(got, "\n"+word) || len(got) > 2048 {
			t.Errorf("%d bytes, ending %q", len(got), got[max(len(got)-10, 0):])
		}
		_ = l.Close()
	}
}
