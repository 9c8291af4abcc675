package deployments_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// unit returns the assignments of a unit file and its drop-ins, in order.
func unit(t *testing.T, name string, dropIns ...string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	text := ""
	for _, n := range append([]string{name}, dropIns...) {
		text += read(t, "deployments/systemd/"+n)
	}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
			all[k] = append(all[k], v)
		}
	}
	return all
}

func TestUnitsAreWhatSystemdUnderstands(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name := range programs {
		text := strings.ReplaceAll(read(t, "deployments/systemd/"+name+".service"), "/usr/local/bin/"+name, program(t, name))
		path := filepath.Join(dir, name+".service")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out := run(t, 0, "systemd-analyze", "verify", "--man=no", "--recursive-errors=no", path); strings.Contains(out, name) {
			t.Errorf("systemd-analyze verify %s:\n%s", name, out)
		}
	}
}

func TestUnitsGiveTheirProgramsSettingsThatExist(t *testing.T) {
	t.Parallel()
	for name := range programs {
		checkUnit(t, name, unit(t, name+".service"))
	}
	for _, dropIn := range []string{"orchestrator-kernex-broker.conf", "orchestrator-other-broker.conf"} {
		checkUnit(t, "kernex-orchestrator", unit(t, "kernex-orchestrator.service", dropIn))
	}
}

func checkUnit(t *testing.T, name string, u map[string][]string) {
	t.Helper()
	words := strings.Fields(u["ExecStart"][0])
	var command []string
	if len(words) > 1 && !strings.HasPrefix(words[1], "-") {
		command = words[1:2]
	}
	has := settingsOf(t, name, command...)
	for _, f := range flagWord.FindAllString(u["ExecStart"][0], -1) {
		if !has.flags[f] {
			t.Errorf("%s.service gives %s, which the program does not have", name, f)
		}
	}
	for _, e := range u["Environment"] {
		if v, _, _ := strings.Cut(e, "="); !has.env[v] {
			t.Errorf("%s.service sets %s, which the program does not have", name, v)
		}
	}
	loaded := map[string]bool{}
	for _, l := range u["LoadCredential"] {
		id, path, _ := strings.Cut(l, ":")
		loaded[id] = true
		if path != "/etc/kernex/"+id {
			t.Errorf("%s.service loads %s from %s", name, id, path)
		}
	}
	used := strings.Join(append(words, u["Environment"]...), " ")
	for _, m := range regexp.MustCompile(`%d/([a-z0-9.]+)`).FindAllStringSubmatch(used, -1) {
		if !loaded[m[1]] {
			t.Errorf("%s.service uses credential %s without loading it", name, m[1])
		}
		delete(loaded, m[1])
	}
	for id := range loaded {
		t.Errorf("%s.service loads %s for nothing", name, id)
	}
}

func TestUnitsComeBackAndAreConfined(t *testing.T) {
	t.Parallel()
	for name := range programs {
		u := unit(t, name+".service")
		want := map[string]string{"Restart": "always", "StartLimitIntervalSec": "0", "LimitCORE": "0", "UMask": "0077", "ProtectHome": "yes"}
		if name == "kernex-agent" {
			want["Type"], want["StateDirectoryMode"], want["OOMPolicy"] = "notify", "0700", "continue"
		} else {
			want["DynamicUser"], want["NoNewPrivileges"], want["ProtectSystem"], want["CapabilityBoundingSet"] = "yes", "yes", "strict", ""
		}
		for k, v := range want {
			if got := strings.Join(u[k], " "); got != v || len(u[k]) != 1 {
				t.Errorf("%s.service: %s=%s, want %q", name, k, u[k], v)
			}
		}
	}
}

func TestInstallAndUninstallLeaveWhatTheySay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const install, uninstall = "systemd/install.sh", "systemd/uninstall.sh"
	top := filepath.Join(dir, "device")
	env := filepath.Join(top, "etc/kernex/agent.env")
	is := func(path, want string, mode fs.FileMode) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(top, path))
		if err != nil || want != "" && string(b) != want {
			t.Fatalf("%s: %q, %v, want %q", path, b, err, want)
		}
		if info, err := os.Stat(filepath.Join(top, path)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), mode)
		}
	}
	gone := func(path string) {
		t.Helper()
		if _, err := os.Lstat(filepath.Join(top, path)); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	binary, token := write("agent-1", "one", 0o700), write("token", "kxe_abc-123\n", 0o600)
	ca := write("ca.pem", "-----BEGIN CERTIFICATE-----\n", 0o600)

	// Refused, with nothing written.
	for _, args := range [][]string{
		{}, {"--broker", "http://x"}, {"--broker", "tcp://a b"}, {"--broker", "mqtts://x;reboot:1"}, {"--broker"}, {"--odd"},
	} {
		run(t, 2, "sh", append([]string{install, "--root", top, "--binary", binary}, args...)...)
	}
	run(t, 1, "sh", install, "--root", top, "--broker", "tcp://x:1", "--binary", ca)
	bad := write("bad", "kxe_$(reboot)", 0o600)
	if out := run(t, 1, "sh", install, "--root", top, "--broker", "tcp://x:1", "--binary", binary, "--token-file", bad); strings.Contains(out, "kxe_") {
		t.Error("a refused token is shown")
	}
	gone("")

	run(t, 0, "sh", install, "--root", top, "--broker", "mqtts://broker.example.com:8883", "--token-file", token, "--ca", ca, "--binary", binary)
	is("usr/local/bin/kernex-agent", "one", 0o755)
	is("etc/systemd/system/kernex-agent.service", read(t, "deployments/systemd/kernex-agent.service"), 0o644)
	is("etc/systemd/system/multi-user.target.wants/kernex-agent.service", "", 0o644)
	is("etc/kernex/agent-ca.pem", "", 0o644)
	is("etc/kernex/agent.env", "KERNEX_CA=/etc/kernex/agent-ca.pem\nKERNEX_BROKER=mqtts://broker.example.com:8883\nKERNEX_ENROLL_TOKEN=kxe_abc-123\n", 0o600)
	has := settingsOf(t, "kernex-agent")
	for _, v := range []string{"KERNEX_CA", "KERNEX_BROKER", "KERNEX_ENROLL_TOKEN", "KERNEX_STATE"} {
		if !has.env[v] {
			t.Errorf("kernex-agent has no %s", v)
		}
	}

	// Again, with another binary: settings are kept, a line by hand too.
	f, err := os.OpenFile(env, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("KERNEX_SERIAL=17\n"); err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	run(t, 0, "sh", install, "--root", top, "--binary", write("agent-2", "two", 0o700))
	run(t, 0, "sh", install, "--root", top, "--broker", "tcp://other:1883", "--binary", filepath.Join(dir, "agent-2"))
	is("usr/local/bin/kernex-agent", "two", 0o755)
	is("etc/kernex/agent.env", "KERNEX_CA=/etc/kernex/agent-ca.pem\nKERNEX_ENROLL_TOKEN=kxe_abc-123\nKERNEX_SERIAL=17\nKERNEX_BROKER=tcp://other:1883\n", 0o600)

	state := filepath.Join(top, "var/lib/kernex-agent")
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, 2, "sh", uninstall, "--root", top, "--all")
	run(t, 0, "sh", uninstall, "--root", top)
	run(t, 0, "sh", uninstall, "--root", top)
	for _, path := range []string{"usr/local/bin/kernex-agent", "etc/systemd/system/kernex-agent.service", "etc/systemd/system/multi-user.target.wants/kernex-agent.service"} {
		gone(path)
	}
	is("etc/kernex/agent.env", "", 0o600)
	run(t, 0, "sh", uninstall, "--root", top, "--purge")
	gone("etc/kernex")
	gone("var/lib/kernex-agent")
}

func TestScriptsParse(t *testing.T) {
	t.Parallel()
	scripts, err := filepath.Glob("*/*.sh")
	if err != nil || len(scripts) < 3 {
		t.Fatalf("%v, %v", scripts, err)
	}
	for _, s := range scripts {
		run(t, 0, "sh", "-n", s)
		if info, err := os.Stat(s); err != nil || info.Mode().Perm()&0o111 == 0 {
			t.Errorf("%s cannot be executed", s)
		}
		if out := run(t, 0, "sh", s, "--help"); !strings.Contains(out, filepath.Base(s)) {
			t.Errorf("%s --help says %q", s, out)
		}
	}
}
