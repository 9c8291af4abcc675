package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

type settings struct {
	File
	Listen   string        `default:"127.0.0.1:1" env:"KERNEX_TEST_LISTEN"`
	Interval time.Duration `default:"1s"`
	Count    int           `default:"3"`
	LogLevel string        `enum:"debug,info" default:"info"`
	Peers    []string
	Verbose  bool
}

func parse(t *testing.T, file string, args ...string) (settings, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	var s settings
	p, err := kong.New(&s, kong.Configuration(YAML), kong.Exit(func(int) {}))
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Parse(append([]string{"--config", path}, args...))
	return s, err
}

func TestTheFileFillsWhatFlagsAndEnvironmentLeaveOpen(t *testing.T) {
	t.Setenv("KERNEX_TEST_LISTEN", "from-env")
	s, err := parse(t, "listen: from-file\ninterval: 5s\ncount: 7\npeers: [a, b]\nverbose: true\nlog_level: debug\n", "--count", "9")
	if err != nil {
		t.Fatal(err)
	}
	if s.Listen != "from-env" || s.Interval != 5*time.Second || s.Count != 9 || s.LogLevel != "debug" || !s.Verbose || !slices.Equal(s.Peers, []string{"a", "b"}) {
		t.Fatalf("settings %+v", s)
	}
}

func TestABadSettingsFileIsRefusedWithKeyAndReason(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ file, want string }{
		"empty":             {"", "is empty"},
		"unknown key":       {"listne: x\n", `unknown key "listne"`},
		"not YAML":          {"a: [", "parse settings file"},
		"key twice":         {"count: 1\ncount: 2\n", "already defined"},
		"wrong type":        {"count: many\n", "many"},
		"no unit":           {"interval: 5\n", "interval"},
		"not in the list":   {"log_level: loud\n", "loud"},
		"a map":             {"listen: {a: b}\n", `key "listen"`},
		"no value":          {"listen:\n", "has no value"},
		"the file's own":    {"config: x\n", `unknown key "config"`},
		"larger than 1 MiB": {"# " + strings.Repeat("x", MaxSize), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if s, err := parse(t, tc.file); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("%+v, %v, want %q", s, err, tc.want)
			}
		})
	}
}
