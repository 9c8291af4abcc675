// Package config reads a program's settings file: strict YAML, under what the
// command line and the environment say. Flags, variables and file keys are the
// same settings: --log-level, KERNEX_LOG_LEVEL and log_level.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"

	"github.com/alecthomas/kong"
	"gopkg.in/yaml.v3"
)

// MaxSize bounds a settings file, in bytes.
const MaxSize = 1 << 20

// File is the --config flag: embed it in a program's flags and give YAML to
// kong.Configuration.
type File struct {
	Config kong.ConfigFlag `placeholder:"FILE" env:"KERNEX_CONFIG" help:"Settings file, YAML: log_level: debug is --log-level debug. Flags and KERNEX_* variables win over it."`
}

// YAML is a kong.ConfigurationLoader. An unknown key, a key that stands twice
// and a value that is no scalar or list are refused by name, so that a typo
// does not become a default.
func YAML(r io.Reader) (kong.Resolver, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read settings file: %w", err)
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("settings file is larger than %d bytes", MaxSize)
	}
	values := map[string]any{}
	if err := yaml.Unmarshal(data, &values); err != nil { // refuses duplicate keys
		return nil, fmt.Errorf("parse settings file: %w", err)
	}
	if len(values) == 0 {
		return nil, errors.New("settings file is empty")
	}
	settings := resolver{}
	for key, v := range values {
		if settings[key], err = text(v); err != nil {
			return nil, fmt.Errorf("settings file: key %q: %w", key, err)
		}
	}
	return settings, nil
}

// resolver maps a file key to its value as text.
type resolver map[string]string

// Validate refuses keys that are no setting of the program.
func (s resolver) Validate(app *kong.Application) error {
	known := map[string]bool{}
	var walk func(n *kong.Node)
	walk = func(n *kong.Node) {
		for _, f := range n.Flags {
			known[key(f)] = true
		}
		for _, c := range n.Children {
			walk(c)
		}
	}
	walk(app.Node)
	var bad []string
	for k := range s {
		if !known[k] || k == "config" || k == "help" {
			bad = append(bad, k)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	sort.Strings(bad)
	return fmt.Errorf("settings file: unknown key %q; see --help for the settings", bad[0])
}

// Resolve gives a flag its value from the file, unless the environment has one.
func (s resolver) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, env := range flag.Envs {
		if _, ok := os.LookupEnv(env); ok {
			return nil, nil
		}
	}
	if v, ok := s[key(flag)]; ok {
		return v, nil
	}
	return nil, nil
}

func key(f *kong.Flag) string { return strings.ReplaceAll(f.Name, "-", "_") }

func text(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case bool, int, int64, uint64, float64:
		return fmt.Sprint(v), nil
	case []any:
		parts := make([]string, len(v))
		for i, item := range v {
			t, err := text(item)
			if err != nil || strings.Contains(t, ",") {
				return "", fmt.Errorf("list item %d is %v: use a text or number without a comma", i+1, item)
			}
			parts[i] = t
		}
		return strings.Join(parts, ","), nil
	case nil:
		return "", errors.New("has no value")
	}
	return "", fmt.Errorf("is a %T: use a text, a number, true, false or a list", v)
}
