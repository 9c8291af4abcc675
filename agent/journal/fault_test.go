package journal_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/kernexhq/kernex/agent/journal"
	"github.com/kernexhq/kernex/pkg/durable"
)

// A disk that is full for one call while the journal is opened: either it does
// not open, or what is written to it afterwards is there at the next start. Once
// the file was compacted and then cut to its old, greater length; the hole hid
// every later record.
func TestAFaultWhileTheJournalIsOpenedLosesNothingLater(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		path := filepath.Join(t.TempDir(), "journal")
		j, err := journal.Open(&durable.FS{}, path)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 { // far longer than its compaction
			if err := j.Write(map[string]any{"before": strings.Repeat("x", 100)}); err != nil {
				t.Fatal(err)
			}
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		moments, where := -1, ""
		j, err = journal.Open(&durable.FS{Hook: func(c durable.Call, _ bool) error {
			if moments++; moments == n {
				where = string(c.Kind)
				return syscall.ENOSPC
			}
			return nil
		}}, path)
		if err == nil {
			err = j.Write(map[string]any{"after": n})
		}
		written := err == nil
		if j != nil {
			_ = j.Close()
		}
		again, err := journal.Open(&durable.FS{}, path)
		if err != nil {
			t.Fatalf("moment %d, %s: the next start: %v", n, where, err)
		}
		var text string
		var after int
		if found, err := again.Read("before", &text); !found || err != nil || len(text) != 100 {
			t.Errorf("moment %d, %s: before: %q, %v", n, where, text, err)
		}
		if found, err := again.Read("after", &after); written && (!found || after != n) || err != nil {
			t.Errorf("moment %d, %s: what was written is gone, %v", n, where, err)
		}
		_ = again.Close()
		if where == "" {
			return // n is beyond the last moment
		}
	}
}
