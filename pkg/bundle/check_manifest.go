package bundle

import (
	"fmt"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

var (
	nameRE      = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)
	configKeyRE = regexp.MustCompile(`^[a-z][a-z0-9_]{0,62}$`)
	envNameRE   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	digestRE    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	modeRE      = regexp.MustCompile(`^0[0-7]{3}$`)
)

// architectures are the GOARCH names for which Go builds Linux programs: a
// misspelt one would fit no device, and nobody would be told.
var architectures = []string{"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64", "s390x"}

// Bounds of lists and texts: generous for people, small for a device.
const (
	maxDescription = 4096
	maxList        = 64 // entries of arch, device_types, config_keys, run.command, run.env
	maxText        = 4096
	maxSeconds     = 86400
)

// check reports the first rule that the manifest of a built bundle breaks.
func (m *Manifest) check() error {
	if err := m.checkFiles(); err != nil {
		return err
	}
	return m.checkMeta()
}

// checkMeta checks everything but the shape of files, in the order in which
// people write it.
func (m *Manifest) checkMeta() error {
	for _, check := range []func() error{m.checkIdentity, m.checkTargets, m.checkScripts, m.checkHealth, m.checkRun, m.checkConfigKeys} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manifest) checkIdentity() error {
	if m.Schema != SchemaVersion {
		return fmt.Errorf("schema is %d, want %d", m.Schema, SchemaVersion)
	}
	if !ValidName(m.Name) {
		return fmt.Errorf("name is %q, want %s", m.Name, nameRE)
	}
	if err := CheckVersion(m.Version); err != nil {
		return fmt.Errorf("version is %q: %w", m.Version, err)
	}
	if err := checkText("description", m.Description, maxDescription); err != nil {
		return err
	}
	if m.Counter < 0 {
		return fmt.Errorf("counter is %d, want at least 0", m.Counter)
	}
	if m.MinCounter < 0 || m.MinCounter > m.Counter {
		return fmt.Errorf("min_counter is %d, want 0 to counter (%d)", m.MinCounter, m.Counter)
	}
	return nil
}

func (m *Manifest) checkTargets() error {
	if err := checkList("arch", m.Arch, func(s string) error {
		if !slices.Contains(architectures, s) {
			return fmt.Errorf("want one of %s", strings.Join(architectures, ", "))
		}
		return nil
	}); err != nil {
		return err
	}
	if err := checkList("device_types", m.DeviceTypes, matches(nameRE)); err != nil {
		return err
	}
	if m.MinAgentVersion != "" {
		if err := CheckVersion(m.MinAgentVersion); err != nil {
			return fmt.Errorf("min_agent_version is %q: %w", m.MinAgentVersion, err)
		}
	}
	return nil
}

func (m *Manifest) checkScripts() error {
	if err := m.checkScript("deploy", m.Deploy); err != nil {
		return err
	}
	if m.Rollback != nil {
		return m.checkScript("rollback", *m.Rollback)
	}
	return nil
}

func (m *Manifest) checkScript(key string, s Script) error {
	if err := m.checkExecutable(key+".script", s.Script); err != nil {
		return err
	}
	return checkRange(key+".timeout_s", s.TimeoutS, 1, maxSeconds)
}

// checkExecutable finds out here, not on a device at night, that a program is
// absent, empty or not executable.
func (m *Manifest) checkExecutable(key, path string) error {
	if path == "" {
		return fmt.Errorf("%s is missing", key)
	}
	f := m.file(path)
	switch {
	case f == nil:
		return fmt.Errorf("%s is %q, which is not in the bundle", key, path)
	case f.Size == 0:
		return fmt.Errorf("%s is %q, which is empty", key, path)
	case f.Perm()&0o100 == 0:
		return fmt.Errorf("%s is %q, which is not executable (mode %s)", key, path, f.Mode)
	}
	return nil
}

func (m *Manifest) checkHealth() error {
	h := m.Health
	if h == nil {
		return nil
	}
	probes := 0
	for _, s := range []string{h.HTTP, h.Script, h.TCP} {
		if s != "" {
			probes++
		}
	}
	if probes != 1 {
		return fmt.Errorf("health has %d of http, script and tcp, want exactly one", probes)
	}
	if h.HTTP != "" {
		u, err := url.Parse(h.HTTP)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil || len(h.HTTP) > maxText {
			return fmt.Errorf("health.http is %q, want http://HOST[:PORT]/PATH", h.HTTP)
		}
	}
	if h.TCP != "" {
		host, port, err := net.SplitHostPort(h.TCP)
		if n, atoiErr := strconv.Atoi(port); err != nil || atoiErr != nil || host == "" || n < 1 || n > 65535 {
			return fmt.Errorf("health.tcp is %q, want HOST:PORT", h.TCP)
		}
	}
	if h.Script != "" {
		if err := m.checkExecutable("health.script", h.Script); err != nil {
			return err
		}
	}
	for _, c := range []struct {
		key    string
		n      int
		lo, hi int
	}{
		{"health.interval_s", h.IntervalS, 1, 3600},
		{"health.timeout_s", h.TimeoutS, 1, 3600},
		{"health.successes", h.Successes, 1, 100},
		{"health.window_s", h.WindowS, 1, maxSeconds},
	} {
		if err := checkRange(c.key, c.n, c.lo, c.hi); err != nil {
			return err
		}
	}
	if need := (h.Successes - 1) * h.IntervalS; h.WindowS <= need {
		return fmt.Errorf("health.window_s is %d, too short for %d successes every %d s: want more than %d", h.WindowS, h.Successes, h.IntervalS, need)
	}
	return nil
}

func (m *Manifest) checkRun() error {
	r := m.Run
	if r == nil {
		return nil
	}
	if len(r.Command) == 0 || len(r.Command) > maxList || r.Command[0] == "" {
		return fmt.Errorf("run.command is %q, want a program and at most %d arguments", r.Command, maxList-1)
	}
	for _, arg := range r.Command {
		if err := checkText("run.command", arg, maxText); err != nil {
			return err
		}
	}
	// A relative path is a file of the bundle; a bare name is found on PATH and
	// an absolute path on the device.
	if program := r.Command[0]; strings.Contains(program, "/") && !strings.HasPrefix(program, "/") {
		if err := m.checkExecutable("run.command", strings.TrimPrefix(program, "./")); err != nil {
			return err
		}
	}
	if !slices.Contains([]string{RestartAlways, RestartOnFailure, RestartNever}, r.Restart) {
		return fmt.Errorf("run.restart is %q, want %s, %s or %s", r.Restart, RestartAlways, RestartOnFailure, RestartNever)
	}
	if err := checkRange("run.max_restarts", r.MaxRestarts, 0, 1000); err != nil {
		return err
	}
	if err := checkRange("run.stop_timeout_s", r.StopTimeoutS, 1, 600); err != nil {
		return err
	}
	if len(r.Env) > maxList {
		return fmt.Errorf("run.env has %d entries, want at most %d", len(r.Env), maxList)
	}
	for name, value := range r.Env {
		if !envNameRE.MatchString(name) || strings.HasPrefix(name, "KERNEX_") {
			return fmt.Errorf("run.env has %q, want %s and not KERNEX_*", name, envNameRE)
		}
		if err := checkText("run.env."+name, value, maxText); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manifest) checkConfigKeys() error {
	return checkList("config_keys", m.ConfigKeys, matches(configKeyRE))
}

// ValidName reports whether s may name a bundle or a device type.
func ValidName(s string) bool { return nameRE.MatchString(s) }

func matches(re *regexp.Regexp) func(string) error {
	return func(s string) error {
		if !re.MatchString(s) {
			return fmt.Errorf("want %s", re)
		}
		return nil
	}
}

func checkList(key string, list []string, check func(string) error) error {
	if len(list) > maxList {
		return fmt.Errorf("%s has %d entries, want at most %d", key, len(list), maxList)
	}
	for i, s := range list {
		if err := check(s); err != nil {
			return fmt.Errorf("%s has %q: %w", key, s, err)
		}
		if slices.Contains(list[:i], s) {
			return fmt.Errorf("%s has %q twice", key, s)
		}
	}
	return nil
}

func checkRange(key string, n, lo, hi int) error {
	if n < lo || n > hi {
		return fmt.Errorf("%s is %d, want %d to %d", key, n, lo, hi)
	}
	return nil
}

// checkText refuses what a terminal, an environment or an exec could trip over.
func checkText(key, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%s is %d bytes, want at most %d", key, len(s), limit)
	}
	for _, r := range s {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return fmt.Errorf("%s contains the control character %U", key, r)
		}
	}
	return nil
}
