package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func runWith(t *testing.T, vars map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs output
	code = run(t.Context(), args, &out, &errs, env(vars))
	return code, out.String(), errs.String()
}

func TestACommandLineThatMeansNothingIsAUsageError(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ args, says string }{
		{"frobnicate", "frobnicate"},
		{"device", "kernex device --help"},
		{"device list --nosuch", "--nosuch"},
		{"device list -o yaml", "yaml"},
		{"device list --limit=-1", "--limit -1"},
		{"device label d nothing", `"nothing"`},
		{"device label d a=?", `a="?"`},
		{"device config set d", "nothing to set"},
		{"device config set --log-level info", "name one device"},
		{"device config set d --selector a=b --log-level info", "name one device"},
		{"device config set --selector a=b --set k=v", "--set"},
		{"device config set d --heartbeat-interval 0", "heartbeat_interval_s is 0"},
		{"device config set d --log-level loud", "loud"},
		{"device config set d --set novalue", "novalue"},
		{"deploy --bundle b", "--version"},
		{"deploy --bundle b --version 1", "--selector or --device"},
		{"deploy --bundle b --version 1 --device d --selector a=b", "can't be used together"},
		{"deploy --bundle b --version 1 --selector a", `"a"`},
		{"deploy --bundle b --version 1 --device d --expire-after 5s", "5s"},
		{"token create --name n --role king", "king"},
		{"token create --name n --role viewer --expires soon", "soon"},
		{"token create --name n --role viewer --expires=-1h", "-1h"},
		{"enroll-token create --max-uses=-1", "-1"},
		{"enroll-token create --label a=?", `a="?"`},
		{"bundle init /nowhere --name UPPER", "UPPER"},
		{"bundle build /nowhere-at-all", "/nowhere-at-all"},
		{"device list --url ftp://x", "ftp://x"},
		{"device list --token a --token-file b", "one of them"},
	} {
		code, _, errs := runWith(t, map[string]string{"KERNEX_URL": "http://127.0.0.1:1"}, strings.Fields(tc.args)...)
		if code != exitUsage || !strings.Contains(errs, tc.says) || strings.Count(errs, "\n") != 1 || !strings.HasPrefix(errs, "kernex: ") {
			t.Errorf("kernex %s: exit code %d, %q", tc.args, code, errs)
		}
	}
	if code, out, _ := runWith(t, nil); code != exitUsage || !strings.Contains(out, "Commands:") {
		t.Errorf("without arguments: exit code %d, %s", code, out)
	}
}

func TestHelpExistsForEveryCommand(t *testing.T) {
	t.Parallel()
	for _, cmd := range []string{"", "device", "device config set", "bundle push", "deploy", "rollback", "deployment get", "token create", "enroll-token create", "audit list", "watch", "version"} {
		code, out, errs := runWith(t, nil, append(strings.Fields(cmd), "--help")...)
		if code != exitDone || errs != "" || !strings.Contains(out, "Usage: kernex "+cmd) || !strings.Contains(out, "KERNEX_URL") {
			t.Errorf("kernex %s --help: exit code %d, %s%s", cmd, code, out, errs)
		}
	}
	if code, out, _ := runWith(t, nil, "version"); code != exitDone || !strings.HasPrefix(out, "kernex ") {
		t.Errorf("version: exit code %d, %s", code, out)
	}
}

func TestAnAPIThatIsNotThereIsNamedWithWhatToDo(t *testing.T) {
	t.Parallel()
	code, _, errs := runWith(t, map[string]string{"KERNEX_URL": "http://127.0.0.1:1", "KERNEX_TOKEN": "x"}, "device", "list")
	if want := "kernex: cannot reach http://127.0.0.1:1: connection refused; is `kernex up` running? Set --url or KERNEX_URL\n"; code != exitFailed || errs != want {
		t.Errorf("exit code %d, %q, want %q", code, errs, want)
	}
}

// TestTheTokenComesFromTheNearestSource changes the working directory, so it is
// not parallel.
func TestTheTokenComesFromTheNearestSource(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir(".kernex", 0o700); err != nil {
		t.Fatal(err)
	}
	for file, token := range map[string]string{localToken: "kx_local", "flag": "kx_flagfile", "env": "kx_envfile\n", "two": "a b"} {
		if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const local, remote = "http://127.0.0.1:8080", "https://kernex.example"
	for _, tc := range []struct {
		name, url string
		flags     globals
		vars      map[string]string
		want      string
	}{
		{"file of kernex up", local, globals{}, nil, "kx_local"},
		{"file of kernex up by name", "http://localhost:1", globals{}, nil, "kx_local"},
		{"file of kernex up stays on this machine", remote, globals{}, nil, ""},
		{"environment file", local, globals{}, map[string]string{"KERNEX_TOKEN_FILE": "env"}, "kx_envfile"},
		{"environment before its file", remote, globals{}, map[string]string{"KERNEX_TOKEN": "kx_env", "KERNEX_TOKEN_FILE": "env"}, "kx_env"},
		{"file flag before the environment", remote, globals{TokenFile: "flag"}, map[string]string{"KERNEX_TOKEN": "kx_env"}, "kx_flagfile"},
		{"flag first", local, globals{Token: "kx_flag"}, map[string]string{"KERNEX_TOKEN": "kx_env"}, "kx_flag"},
	} {
		a := &app{env: env(tc.vars), flags: &tc.flags}
		if got, err := a.token(tc.url); err != nil || got != tc.want {
			t.Errorf("%s: %q, %v, want %q", tc.name, got, err, tc.want)
		}
	}
	for _, file := range []string{"two", "absent"} {
		a := &app{env: env(nil), flags: &globals{TokenFile: file}}
		if _, err := a.token(local); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestAWatchSurvivesAnAPIThatIsAwayForAWhile(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := fleet.Deployment{ID: "dep-1", Kind: "deploy", Bundle: "b", BundleVersion: "1", Status: fleet.DeploymentInProgress, Total: 20, Progress: map[fleet.TargetState]int{fleet.TargetOffered: 20}}
		switch n := calls.Add(1); {
		case n == 1:
		case n <= 7: // longer than one call tries
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		default:
			d.Status, d.Progress = fleet.DeploymentSuccess, map[fleet.TargetState]int{fleet.TargetSucceeded: 20}
		}
		_ = json.NewEncoder(w).Encode(d)
	}))
	defer s.Close()
	code, out, errs := runWith(t, map[string]string{"KERNEX_URL": s.URL}, "deployment", "get", "dep-1", "--watch")
	if code != exitDone {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	contains(t, out, "b 1 to 20 devices", "still trying", "20 succeeded")
}

func TestTheScaffoldIsABundleThatBuilds(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "My Camera App")
	code, out, errs := runWith(t, nil, "bundle", "init", dir)
	if code != exitDone || !strings.Contains(out, "bundle my-camera-app") {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	var archive output
	info, err := bundle.Build(dir, &archive, bundle.Limits{})
	if err != nil || info.Manifest.Name != "my-camera-app" || len(info.Manifest.Files) != 3 {
		t.Fatalf("%+v, %v", info, err)
	}
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil || strings.Contains(string(readme), "{{") {
		t.Errorf("%v: %s", err, readme)
	}
}

func TestTimesAndSizesReadWell(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a := &app{now: func() time.Time { return now }}
	for d, want := range map[time.Duration]string{
		12 * time.Second: "12s ago", 3*time.Minute + 59*time.Second: "3m ago", 5 * time.Hour: "5h ago", 47 * time.Hour: "47h ago", 12 * 24 * time.Hour: "12d ago", -5 * time.Minute: "in 5m",
	} {
		if got := a.ago(now.Add(-d)); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	if a.ago(time.Time{}) != "-" || a.agoOr(nil, "never") != "never" {
		t.Error("no time")
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1 << 10: "1.0 KiB", 1<<20 - 1: "1.0 MiB", 12_900_000: "12.3 MiB", 1 << 30: "1.0 GiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestTextOfOthersIsHarmlessOnATerminal(t *testing.T) {
	t.Parallel()
	if got := printable(" a\x1b[2J\x07b\nc\u009b1md\u2028e "); got != "a [2J b c 1md e" {
		t.Errorf("%q", got)
	}
}

func TestAnEventIsOneShortLine(t *testing.T) {
	t.Parallel()
	line := eventLine(protocol.CloudEvent{
		Type: "kernex.bundle.uploaded", Subject: "bun-1", Time: time.Now(),
		Data: json.RawMessage(`{"size":1721,"release":"` + strings.Repeat("ab", 32) + `","at":"2026-11-24T23:51:02Z","rollout":{"x":1},"id":"bun-1","error":"line\n\u001b[31mtwo"}`),
	})
	if want := "  bundle.uploaded     bun-1  error=line  [31mtwo  release=abababababab  size=1721"; !strings.HasSuffix(line, want) {
		t.Errorf("%q, want %q at its end", line, want)
	}
}
