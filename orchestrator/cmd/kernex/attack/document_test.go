package attack

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryTestInTheThreatModelExists holds docs/security.md against the
// sources, and sees that each threat has a test.
func TestEveryTestInTheThreatModelExists(t *testing.T) {
	t.Parallel()
	const root = "../../../.."
	doc, err := os.ReadFile(filepath.Join(root, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	defined, declared := map[string]bool{}, regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && path != root && strings.HasPrefix(d.Name(), ".") {
			return filepath.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(text), -1) {
			defined[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile("attack_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, threats, ok := strings.Cut(string(doc), "\n## Threats\n")
	threats, _, ends := strings.Cut(threats, "\n## ")
	if !ok || !ends {
		t.Fatal("there is no section Threats")
	}
	named := regexp.MustCompile(`Test\w+|Attacks/\w+`)
	for _, name := range named.FindAllString(string(doc), -1) {
		if group, is := strings.CutPrefix(name, "Attacks/"); is {
			if !strings.Contains(string(own), `{"`+group+`", x.`) {
				t.Errorf("there is no group %s of attacks", group)
			}
		} else if !defined[name] {
			t.Errorf("there is no test %s", name)
		}
	}
	rows := 0
	for line := range strings.SplitSeq(threats, "\n") {
		cell := strings.Split(line, "|")
		if len(cell) != 7 || strings.HasPrefix(cell[1], "---") || strings.TrimSpace(cell[1]) == "asset" {
			if strings.HasPrefix(line, "|") && len(cell) != 7 {
				t.Errorf("a row of %d cells: %s", len(cell)-2, line)
			}
			continue
		}
		rows++
		if !named.MatchString(cell[5]) {
			t.Errorf("no test for: %s", line)
		}
	}
	if rows < 25 {
		t.Errorf("%d threats", rows)
	}
}
