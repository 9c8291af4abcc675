package update

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The document's table is what this prints: paste it when the machine changes.
func TestTheDocumentPrintsTheMachinesTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"| state | durable before it | after a kill or a power cut in it | action | cancel | reported as |", "|---|---|---|---|---|---|"}
	for _, r := range table {
		cancel, report := "", string(r.report)
		if r.cancel {
			cancel = "yes"
		}
		want = append(want, "| "+strings.Join([]string{string(r.state), r.durable, r.crash, string(r.resume), cancel, report}, " | ")+" |")
	}
	var got []string
	for line := range strings.Lines(string(text)) {
		if inside := len(got) > 0 && len(got) < len(want); inside || strings.HasPrefix(line, "| state |") {
			got = append(got, strings.TrimRight(line, "\n"))
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("docs/agent.md differs (-machine +document):\n%s\n%s", d, strings.Join(want, "\n"))
	}
}
