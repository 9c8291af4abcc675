package journal

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kernexhq/kernex/pkg/durable"
)

func open(t rapid.TB, path string) *Journal {
	t.Helper()
	j, err := Open(&durable.FS{}, path)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func contents(j *Journal) map[string]string {
	out := map[string]string{}
	for k, v := range j.values {
		out[k] = string(v)
	}
	return out
}

func TestAPrefixOfTheFileIsAPrefixOfTheChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		path := filepath.Join(dir, "journal")
		_ = os.Remove(path)
		j := open(t, path)
		want := map[string]string{}
		states := []map[string]string{{}}
		for range rapid.IntRange(0, 8).Draw(t, "changes") {
			change := map[string]any{}
			for _, k := range rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3).Draw(t, "keys") {
				if rapid.Bool().Draw(t, "delete") {
					change[k] = nil
					delete(want, k)
					continue
				}
				v := rapid.StringMatching(`[a-z]{0,20}`).Draw(t, "value")
				change[k] = v
				raw, _ := json.Marshal(v)
				want[k] = string(raw)
			}
			if err := j.Write(change); err != nil {
				t.Fatal(err)
			}
			states = append(states, maps.Clone(want))
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		cut := rapid.IntRange(0, len(data)).Draw(t, "cut")
		torn := data[:cut:cut]
		if rapid.Bool().Draw(t, "zeros") {
			torn = append(torn, make([]byte, len(data)-cut)...)
		}
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		j = open(t, path)
		defer func() { _ = j.Close() }()
		got := contents(j)
		if cut == len(data) {
			if d := cmp.Diff(want, got); d != "" {
				t.Fatal(d)
			}
		}
		for _, s := range states {
			if maps.Equal(s, got) {
				return
			}
		}
		t.Fatalf("%v is no state that ever was: %v", got, states)
	})
}

func TestADamagedRecordInTheMiddleIsNotSkipped(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	for _, v := range []int{1, 2, 3} {
		if err := j.Write(map[string]any{"session": v}); err != nil {
			t.Fatal(err)
		}
	}
	_ = j.Close()
	data, _ := os.ReadFile(path)
	data[len(data)/2] ^= 0x40
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(&durable.FS{}, path); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Fatalf("got %v", err)
	}
}

func TestAFullDiskLosesOnlyTheChangeThatDidNotFit(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	full := false
	j, err := Open(&durable.FS{Hook: func(c durable.Call, before bool) error {
		if full && c.Op == "journal" && c.Kind == durable.Write && !before {
			return syscall.ENOSPC // written, and yet not: as a short write
		}
		return nil
	}}, path)
	if err != nil {
		t.Fatal(err)
	}
	for i, fits := range []bool{true, false, true} {
		full = !fits
		if err := j.Write(map[string]any{"n": i}); (err == nil) != fits || err != nil && !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("write %d: %v", i, err)
		}
	}
	_ = j.Close()
	j = open(t, path)
	defer func() { _ = j.Close() }()
	var n int
	if found, err := j.Read("n", &n); !found || err != nil || n != 2 {
		t.Fatalf("%v %v %d", found, err, n)
	}
}

func TestAfterAFailedSyncNothingIsWritten(t *testing.T) {
	t.Parallel()
	bad := false
	j, err := Open(&durable.FS{Hook: func(c durable.Call, before bool) error {
		if bad && c.Op == "journal" && c.Kind == durable.Sync && before {
			return syscall.EIO
		}
		return nil
	}}, filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	bad = true
	if err := j.Write(map[string]any{"a": 1}); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	bad = false
	if err := j.Write(map[string]any{"a": 2}); !errors.Is(err, ErrBroken) {
		t.Fatal(err)
	}
	select {
	case <-j.Failed():
	default:
		t.Error("nobody is told")
	}
	if found, _ := j.Read("a", new(int)); found {
		t.Error("a change that failed is visible")
	}
}

func TestTheFileIsCompactedAsItGrows(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "journal")
	j := open(t, path)
	defer func() { _ = j.Close() }()
	big := strings.Repeat("x", 300<<10)
	for i := range 12 {
		if err := j.Write(map[string]any{"big": big, "i": i}); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Size() > compactAt+400<<10 {
		t.Fatalf("%v %v", info.Size(), err)
	}
	var i int
	if _, err := j.Read("i", &i); err != nil || i != 11 {
		t.Fatal(i, err)
	}
}

func FuzzReplayNeverPanicsAndReadsWhatItWrote(f *testing.F) {
	one, _ := encode(map[string]json.RawMessage{"a": json.RawMessage(`1`)})
	f.Add(one)
	f.Add(append(one[:len(one):len(one)], one[:5]...))
	f.Add(make([]byte, 20))
	f.Fuzz(func(t *testing.T, data []byte) {
		all := map[string]json.RawMessage{}
		_, err := replay(data, func(c map[string]json.RawMessage) { maps.Copy(all, c) })
		if err != nil {
			return
		}
		again, err := encode(all)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := replay(again, func(c map[string]json.RawMessage) { maps.Copy(all, c) }); err != nil {
			t.Fatal(err)
		}
	})
}
