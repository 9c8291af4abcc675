package logs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, limit int64) *File {
	t.Helper()
	f := Open(filepath.Join(t.TempDir(), "log", "run.log"), limit)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func texts(lines []line) []string {
	var out []string
	for _, l := range lines {
		out = append(out, l.Message)
	}
	return out
}

func TestTheLogIsRotatedAndReadAcrossItsFiles(t *testing.T) {
	t.Parallel()
	f := open(t, 400)
	for i := range 30 {
		_, _ = fmt.Fprintf(f, "line %d\n", i)
	}
	f.Note("warn", "it ended")
	for _, p := range []string{f.path, f.path + ".1"} {
		if info, err := os.Stat(p); err != nil || info.Size() > 400 || info.Size() == 0 {
			t.Errorf("%s: %v %v", p, info, err)
		}
	}
	got := f.follow(5, time.Time{}, nil)
	if want := []string{"line 26", "line 27", "line 28", "line 29", "it ended"}; !slices.Equal(texts(got), want) {
		t.Errorf("got %q", texts(got))
	}
	if last := got[4]; last.Source != "agent" || last.Level != "warn" || last.n != 31 || got[0].n != 27 || got[0].Source != "run" {
		t.Errorf("%+v", got)
	}
	if all := f.follow(1000, time.Time{}, nil); len(all) < 9 || len(all) > 20 {
		t.Errorf("%d lines of two files of 400 bytes", len(all))
	}
	if none := f.follow(1000, time.Now().Add(time.Hour), nil); len(none) != 0 {
		t.Errorf("%d lines from the future", len(none))
	}
}

func TestALineWithoutAnEndShowsAfterAMoment(t *testing.T) {
	t.Parallel()
	f := open(t, Size)
	feed := newFeed()
	f.follow(0, time.Time{}, feed)
	_, _ = f.Write([]byte("password: "))
	select {
	case l := <-feed.lines:
		if l.Message != "password: " {
			t.Errorf("%+v", l)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing came")
	}
}

func TestAFullDiskDoesNotStopTheProgram(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := open(t, Size)
	_ = f.f.Close()
	f.f = full
	if n, err := f.Write([]byte("lost\n")); n != 5 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

// Whatever a program writes in whatever pieces comes back as lines that a
// message may carry, none of it lost.
func TestAnyOutputComesBackAsLines(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(t *rapid.T) {
		runs++
		f := Open(filepath.Join(dir, fmt.Sprint(runs)), Size)
		defer func() { _ = f.Close() }()
		var all []byte
		for _, p := range rapid.SliceOf(rapid.SliceOf(rapid.SampledFrom([]byte("ab \n\n\x00\xff")))).Draw(t, "writes") {
			if len(p) > 0 && p[0] == 'b' { // a long one
				p = append(bytes.Repeat([]byte("x"), protocol.MaxLogLine), p...)
			}
			_, _ = f.Write(p)
			all = append(all, p...)
		}
		lines := f.follow(protocol.MaxLogLines, time.Time{}, nil)
		var got strings.Builder
		for i, l := range lines {
			if i > 0 && l.n != lines[i-1].n+1 {
				t.Fatalf("numbers %d, %d", lines[i-1].n, l.n)
			}
			if err := (protocol.Log{Lines: []protocol.LogLine{l.LogLine}}).Validate(); err != nil {
				t.Fatal(err)
			}
			got.WriteString(l.Message)
		}
		want := clean2(bytes.ReplaceAll(all, []byte("\n"), nil))
		if clean2([]byte(got.String())) != want {
			t.Fatalf("%q became %q", all, got.String())
		}
	})
}

// clean2 makes runs of replaced bytes one, which pieces may be cut within.
func clean2(b []byte) string {
	s := strings.ReplaceAll(strings.ToValidUTF8(string(b), "?"), "\x00", "?")
	for strings.Contains(s, "??") {
		s = strings.ReplaceAll(s, "??", "?")
	}
	return s
}

func FuzzTailReadsAnyFile(f *testing.F) {
	f.Add([]byte("2026-10-01T12:00:00.000Z run - hello\nrubbish\n2026-10-01T12:00:00.001Z agent warn bye\n"), 5)
	f.Fuzz(func(t *testing.T, data []byte, n int) {
		n = max(min(n, 100), 0)
		lines := tail(data, 0, n, time.Time{})
		if len(lines) > n {
			t.Fatalf("%d lines, asked for %d", len(lines), n)
		}
		for _, l := range lines {
			if err := (protocol.Log{Lines: []protocol.LogLine{l.LogLine}}).Validate(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// server takes batches; while away it takes none.
type server struct {
	t     *testing.T
	mu    sync.Mutex
	away  bool
	lines []string
	bytes int
}

func (s *server) send(_ context.Context, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.away {
		return errors.New("away")
	}
	if len(payload) > protocol.KindLog.Cap() {
		s.t.Errorf("a batch of %d bytes", len(payload))
	}
	var batch protocol.Log
	if err := json.Unmarshal(payload, &batch); err != nil {
		s.t.Error(err)
	}
	if err := batch.Validate(); err != nil {
		s.t.Error(err)
	}
	for _, l := range batch.Lines {
		s.lines = append(s.lines, l.Message)
	}
	s.bytes += len(payload)
	return nil
}

func (s *server) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

func shipping(t *testing.T, f *File, perMinute int) (*Shipper, *server) {
	t.Helper()
	to := &server{t: t}
	s := newShipper(f, to.send, perMinute)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s, to
}

func TestLinesAreSentWhenAskedForAndNoneTwice(t *testing.T) {
	t.Parallel()
	f := open(t, Size)
	for i := range 10 {
		_, _ = fmt.Fprintf(f, "old %d\n", i)
	}
	s, to := shipping(t, f, bytesPerMinute)
	s.Ask(protocol.Logs{Lines: 2})
	testkit.Eventually(t, 10*time.Second, func() bool { return len(to.got()) == 2 })
	_, _ = f.Write([]byte("unasked\n"))
	s.Ask(protocol.Logs{Lines: 2, FollowS: 60})
	testkit.Eventually(t, 10*time.Second, func() bool { return len(to.got()) == 3 })
	_, _ = f.Write([]byte("live 1\nlive 2\n"))
	testkit.Eventually(t, 10*time.Second, func() bool { return len(to.got()) == 5 })
	s.Ask(protocol.Logs{Lines: 100})
	testkit.Eventually(t, 10*time.Second, func() bool { return len(to.got()) == 13 })
	_, _ = f.Write([]byte("live 3\n"))
	testkit.Eventually(t, 10*time.Second, func() bool { return len(to.got()) == 14 })
	want := []string{"old 8", "old 9", "unasked", "live 1", "live 2", "old 0", "old 1", "old 2", "old 3", "old 4", "old 5", "old 6", "old 7", "live 3"}
	if got := to.got(); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestWhatIsSentStaysWithinItsBudgetAndWhatIsLostIsCounted(t *testing.T) {
	t.Parallel()
	f := open(t, Size)
	s, to := shipping(t, f, 600<<10) // 150 KiB at once and 10 KiB a second
	s.Ask(protocol.Logs{FollowS: 60})
	testkit.Eventually(t, 10*time.Second, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.feed != nil })
	begun := time.Now()
	stop := time.After(time.Second)
	text := []byte(strings.Repeat("y", 200) + "\n")
	for more := true; more; {
		_, _ = f.Write(text)
		select {
		case <-stop:
			more = false
		default:
		}
	}
	to.mu.Lock()
	sent := to.bytes
	to.mu.Unlock()
	if allowed := 150<<10 + int(time.Since(begun).Seconds()*10240) + batchBytes; sent > allowed {
		t.Errorf("%d bytes sent, %d allowed", sent, allowed)
	}
	testkit.Eventually(t, 60*time.Second, func() bool {
		return slices.ContainsFunc(to.got(), func(s string) bool { return strings.Contains(s, " lines left out") })
	})
}

func TestALostConnectionLosesLinesAndSaysSo(t *testing.T) {
	t.Parallel()
	f := open(t, Size)
	s, to := shipping(t, f, bytesPerMinute)
	to.away = true
	s.Ask(protocol.Logs{FollowS: 60})
	testkit.Eventually(t, 10*time.Second, func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.feed != nil })
	_, _ = f.Write([]byte("a\nb\nc\n"))
	s.Ask(protocol.Logs{FollowS: 60}) // flushes
	to.mu.Lock()
	to.away = false
	to.mu.Unlock()
	_, _ = f.Write([]byte("d\n"))
	testkit.Eventually(t, 10*time.Second, func() bool { return slices.Contains(to.got(), "d") })
	testkit.Eventually(t, 10*time.Second, func() bool {
		got := to.got()
		return slices.Contains(got, "a") || slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "3 lines left out") })
	})
}
