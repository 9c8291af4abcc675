// Package deployments_test checks that what deployments/ and compose.yaml say is
// true of the programs: flags, variables, ports, files, sources and metrics.
package deployments_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// root is the top of the repository, seen from this package.
const root = ".."

// programs are ours, by name, with the folder of their main package.
var programs = map[string]string{
	"kernex-agent":        "./agent/cmd/kernex-agent",
	"kernex-broker":       "./broker/cmd/kernex-broker",
	"kernex-orchestrator": "./orchestrator/cmd/kernex-orchestrator",
}

var binDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "kernex-deployments-")
	if err != nil {
		panic(err)
	}
	binDir = dir
	code := m.Run()
	_ = os.RemoveAll(dir) // a leftover in the temporary folder harms nobody
	os.Exit(code)
}

var built = sync.OnceValues(func() (string, error) {
	args := []string{"build", "-o", binDir + "/"}
	for _, dir := range programs {
		args = append(args, dir)
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	return string(out), err
})

// program builds our programs, once, and returns the path of one.
func program(t *testing.T, name string) string {
	t.Helper()
	if out, err := built(); err != nil {
		t.Fatalf("build the programs: %v\n%s", err, out)
	}
	return filepath.Join(binDir, name)
}

// settings are the flags and variables that a program says it has.
type settings struct{ flags, env map[string]bool }

var (
	flagWord = regexp.MustCompile(`--[a-z0-9-]+`)
	envWord  = regexp.MustCompile(`\$KERNEX_[A-Z0-9_]+`)
)

// settingsOf reads them from what --help prints.
func settingsOf(t *testing.T, name string, command ...string) settings {
	t.Helper()
	out, err := exec.Command(program(t, name), append(command, "--help")...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v --help: %v\n%s", name, command, err, out)
	}
	s := settings{flags: map[string]bool{}, env: map[string]bool{}}
	for _, f := range flagWord.FindAllString(string(out), -1) {
		s.flags[f] = true
	}
	for _, e := range envWord.FindAllString(string(out), -1) {
		s.env[e[1:]] = true
	}
	return s
}

// read returns a file of the repository.
func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// goMod returns what a line of go.mod that begins with key says.
func goMod(t *testing.T, key string) string {
	t.Helper()
	for line := range strings.Lines(read(t, "go.mod")) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == key {
			return f[1]
		}
	}
	t.Fatalf("go.mod says nothing of %s", key)
	return ""
}

// run runs a command and returns its output, which must come with status want.
func run(t *testing.T, want int, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != want {
		t.Fatalf("%s %s: %v, want status %d\n%s", name, strings.Join(args, " "), err, want, out)
	}
	return string(out)
}
