package bundle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kernexhq/kernex/pkg/fleet"
)

var zeros64 = strings.Repeat("0", 64)

// manifestWith returns a good manifest with some top-level keys replaced or,
// with a nil value, removed.
func manifestWith(t testing.TB, changes map[string]any) []byte {
	t.Helper()
	m := map[string]any{
		"schema": 1, "name": "edge", "version": "1.0.0",
		"files": []any{
			file("deploy.sh", "0755", 3), file("health.sh", "0755", 3), file("bin/server", "0755", 3),
			file("data.txt", "0644", 3), file("empty.sh", "0755", 0),
		},
		"deploy": map[string]any{"script": "deploy.sh"},
	}
	maps.Copy(m, changes)
	maps.DeleteFunc(m, func(_ string, v any) bool { return v == nil })
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func file(path, mode string, size int) map[string]any {
	return map[string]any{"path": path, "mode": mode, "size": size, "sha256": zeros64}
}

type obj = map[string]any

func TestAManifestGetsItsDefaults(t *testing.T) {
	t.Parallel()
	m, err := ParseManifest(manifestWith(t, obj{
		"health": obj{"tcp": "127.0.0.1:80"}, "run": obj{"command": []string{"./bin/server"}}, "rollback": obj{"script": "deploy.sh", "timeout_s": 7},
	}))
	if err != nil {
		t.Fatal(err)
	}
	got := []any{m.Deploy, *m.Rollback, *m.Health, *m.Run}
	want := []any{
		Script{"deploy.sh", 300}, Script{"deploy.sh", 7},
		Health{TCP: "127.0.0.1:80", IntervalS: 2, TimeoutS: 5, Successes: 2, WindowS: 20},
		Run{Command: []string{"./bin/server"}, Restart: "always", MaxRestarts: 5, StopTimeoutS: 10},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
}

func TestManifestsThatAreGoodAreTaken(t *testing.T) {
	t.Parallel()
	for name, changes := range map[string]obj{
		"least":            {},
		"null is absent":   {"rollback": json.RawMessage("null"), "not_after": json.RawMessage("null"), "health": json.RawMessage("null")},
		"counter":          {"counter": 12, "min_counter": 12, "not_after": "2027-01-01T00:00:00Z"},
		"targets":          {"arch": []string{"amd64", "arm64"}, "device_types": []string{"gateway-2"}, "min_agent_version": "1.2.3-rc.1"},
		"PATH program":     {"run": obj{"command": []string{"python3", "x.py"}, "max_restarts": 0, "restart": "never", "env": obj{"A_1": "x"}}},
		"absolute program": {"run": obj{"command": []string{"/usr/bin/python3"}}},
		"http":             {"health": obj{"http": "http://127.0.0.1:9100/healthz", "script": "", "tcp": ""}},
		"config keys":      {"config_keys": []string{"threshold", "log_level2"}},
	} {
		if _, err := ParseManifest(manifestWith(t, changes)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManifestsThatBreakARuleAreRefusedNamingKeyAndValue(t *testing.T) {
	t.Parallel()
	files := func(fs ...any) obj { return obj{"files": append(fs, file("deploy.sh", "0755", 3))} }
	path := func(p string) obj { return files(file(p, "0644", 1)) }
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprintf("key%d", i)
	}
	for name, tc := range map[string]struct {
		changes obj
		want    string
	}{
		"unknown key":             {obj{"rolback": obj{}}, `unknown key "rolback"`},
		"other case":              {obj{"Deploy": obj{"script": "deploy.sh"}}, `unknown key "Deploy"`},
		"unknown key below":       {obj{"health": obj{"tcp": "a:1", "tiemout_s": 1}}, `unknown key "health.tiemout_s"`},
		"unknown key in a file":   {files(obj{"path": "a", "sha": "x"}), `unknown key "files[].sha"`},
		"null file":               {files(nil), "files[]: want an object"},
		"wrong type":              {obj{"name": 7}, "name is a number, want string"},
		"wrong type below":        {obj{"run": obj{"command": "./bin/server"}}, "run.command is a string"},
		"fraction":                {obj{"deploy": obj{"script": "deploy.sh", "timeout_s": 1.5}}, "timeout_s is a number 1.5"},
		"schema":                  {obj{"schema": 2}, "schema is 2, want 1"},
		"no schema":               {obj{"schema": nil}, "schema is 0, want 1"},
		"name":                    {obj{"name": "Edge"}, `name is "Edge"`},
		"long name":               {obj{"name": strings.Repeat("a", 64)}, "name is"},
		"version":                 {obj{"version": "1.0"}, `version is "1.0"`},
		"no version":              {obj{"version": nil}, "version is \"\": it is missing"},
		"description":             {obj{"description": "\x1b[2J"}, "description contains the control character"},
		"counter":                 {obj{"counter": -1}, "counter is -1"},
		"min_counter":             {obj{"counter": 3, "min_counter": 4}, "min_counter is 4"},
		"not_after":               {obj{"not_after": "tomorrow"}, "tomorrow"},
		"arch":                    {obj{"arch": []string{"aarch64"}}, `arch has "aarch64"`},
		"arch twice":              {obj{"arch": []string{"arm", "arm"}}, `arch has "arm" twice`},
		"device type":             {obj{"device_types": []string{"A B"}}, `device_types has "A B"`},
		"agent version":           {obj{"min_agent_version": "v1"}, `min_agent_version is "v1"`},
		"no files":                {obj{"files": nil}, "files is missing"},
		"deploy missing":          {obj{"deploy": nil}, "deploy.script is missing"},
		"script absent":           {obj{"deploy": obj{"script": "install.sh"}}, `deploy.script is "install.sh", which is not in the bundle`},
		"script empty":            {obj{"deploy": obj{"script": "empty.sh"}}, `"empty.sh", which is empty`},
		"script not executable":   {obj{"rollback": obj{"script": "data.txt"}}, `rollback.script is "data.txt", which is not executable`},
		"script outside":          {obj{"deploy": obj{"script": "/bin/sh"}}, `"/bin/sh", which is not in the bundle`},
		"timeout 0":               {obj{"deploy": obj{"script": "deploy.sh", "timeout_s": 0}}, "deploy.timeout_s is 0, want 1 to 86400"},
		"no probe":                {obj{"health": obj{}}, "0 of http, script and tcp"},
		"two probes":              {obj{"health": obj{"tcp": "a:1", "script": "health.sh"}}, "2 of http, script and tcp"},
		"probe without scheme":    {obj{"health": obj{"http": "127.0.0.1:80/x"}}, "health.http is"},
		"probe of a file":         {obj{"health": obj{"http": "file:///etc/passwd"}}, "health.http is"},
		"port":                    {obj{"health": obj{"tcp": "a:70000"}}, `health.tcp is "a:70000"`},
		"no port":                 {obj{"health": obj{"tcp": "a"}}, `health.tcp is "a"`},
		"negative interval":       {obj{"health": obj{"tcp": "a:1", "interval_s": -1}}, "health.interval_s is -1"},
		"window too short":        {obj{"health": obj{"tcp": "a:1", "interval_s": 10, "successes": 3}}, "health.window_s is 20, too short"},
		"empty command":           {obj{"run": obj{"command": []string{}}}, "run.command is []"},
		"program absent":          {obj{"run": obj{"command": []string{"./serve"}}}, `run.command is "serve", which is not in the bundle`},
		"program not executable":  {obj{"run": obj{"command": []string{"./data.txt"}}}, "not executable"},
		"program outside":         {obj{"run": obj{"command": []string{"../x"}}}, "not in the bundle"},
		"NUL in an argument":      {obj{"run": obj{"command": []string{"sh", "a\x00"}}}, "control character"},
		"restart":                 {obj{"run": obj{"command": []string{"sh"}, "restart": "sometimes"}}, `run.restart is "sometimes"`},
		"max_restarts":            {obj{"run": obj{"command": []string{"sh"}, "max_restarts": -1}}, "run.max_restarts is -1"},
		"reserved environment":    {obj{"run": obj{"command": []string{"sh"}, "env": obj{"KERNEX_STATE_DIR": "/"}}}, "KERNEX_STATE_DIR"},
		"bad environment":         {obj{"run": obj{"command": []string{"sh"}, "env": obj{"A=B": "c"}}}, `"A=B"`},
		"config key":              {obj{"config_keys": []string{"Threshold"}}, `config_keys has "Threshold"`},
		"config keys":             {obj{"config_keys": many}, "config_keys has 65 entries"},
		"mode setuid":             {files(file("a", "04755", 1)), `mode of "a" is "04755"`},
		"mode group write":        {files(file("a", "0775", 1)), `mode of "a" is "0775"`},
		"mode unreadable":         {files(file("a", "0055", 1)), `mode of "a" is "0055"`},
		"negative size":           {files(file("a", "0644", -1)), `size of "a" is -1`},
		"digest":                  {files(obj{"path": "a", "mode": "0644", "size": 1, "sha256": "ABC"}), `sha256 of "a" is "ABC"`},
		"path ../x":               {path("../x"), `"../x" leaves the bundle`},
		"path a/../../x":          {path("a/../../x"), "leaves the bundle"},
		"path /abs":               {path("/abs"), "leaves the bundle"},
		"path ./a":                {path("./a"), "shortest form"},
		"path a//b":               {path("a//b"), "shortest form"},
		"path a/":                 {path("a/"), "shortest form"},
		"path .":                  {path("."), "shortest form"},
		"path empty":              {path(""), "path is empty"},
		"path with newline":       {path("a\nb"), "control characters"},
		"path with NUL":           {path("a\x00b"), "control characters"},
		"path with backslash":     {path(`a\b`), "backslash"},
		"path too long":           {path(strings.Repeat("a/", 512) + "b"), "is 1025 bytes"},
		"path too deep":           {path(strings.Repeat("a/", 16) + "b"), "is 17 deep"},
		"element too long":        {path(strings.Repeat("a", 256)), "element of 256 bytes"},
		"reserved path":           {path("manifest.json"), "there twice"},
		"reserved path, case":     {path("Manifest.json"), "same where case"},
		"duplicate":               {path("deploy.sh"), `"deploy.sh" is there twice`},
		"case collision":          {path("DEPLOY.sh"), "same where case"},
		"accent collision":        {files(file("caf\u00e9", "0644", 1), file("cafe\u0301", "0644", 1)), "same where case"},
		"Kelvin collision":        {files(file("k", "0644", 1), file("\u212a", "0644", 1)), "same where case"},
		"case of a directory":     {files(file("a/x", "0644", 1), file("A/y", "0644", 1)), "same where case"},
		"file as a directory":     {files(file("a", "0644", 1), file("a/x", "0644", 1)), `needs a directory where "a" is a file`},
		"directory as a file":     {files(file("a/x", "0644", 1), file("a", "0644", 1)), "there twice"},
		"file as a folded parent": {files(file("A", "0644", 1), file("a/x", "0644", 1)), "is a file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := ParseManifest(manifestWith(t, tc.changes))
			if err == nil || !strings.Contains(err.Error(), tc.want) || fleet.ErrorCode(err) != fleet.CodeBadBundle {
				t.Fatalf("got %v, want %s with %q", err, fleet.CodeBadBundle, tc.want)
			}
		})
	}
}

func TestTextThatIsNoManifestIsRefused(t *testing.T) {
	t.Parallel()
	good := manifestWith(t, nil)
	for name, tc := range map[string]struct {
		in   []byte
		want string
	}{
		"empty":         {nil, "not a JSON object"},
		"duplicate key": {[]byte(`{"schema":1,"schema":1}`), `duplicate key "schema"`},
		"trailing":      {append(bytes.Clone(good), '1'), "data after"},
		"truncated":     {good[:len(good)-1], "EOF"},
		"not UTF-8":     {[]byte("{\"name\":\"\xff\"}"), "not UTF-8"},
		"too large":     {append(bytes.Clone(good), bytes.Repeat([]byte(" "), MaxManifestBytes)...), "at most 262144"},
		"deep":          {[]byte(`{"run":` + strings.Repeat("[", 10_000)), "nested deeper"},
	} {
		if _, err := ParseManifest(tc.in); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

func FuzzParseManifestAcceptsOnlyWhatItWritesBack(f *testing.F) {
	f.Add(manifestWith(f, nil))
	f.Add(manifestWith(f, obj{"run": obj{"command": []string{"./bin/server"}}, "health": obj{"script": "health.sh"}, "counter": 1, "not_after": "2027-01-01T00:00:00Z"}))
	f.Add([]byte(`{"schema":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data)
		if err != nil {
			if code := fleet.ErrorCode(err); code != fleet.CodeBadBundle && code != fleet.CodeTooLarge {
				t.Fatalf("refused as %s: %v", code, err)
			}
			return
		}
		out, err := m.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseManifest(out)
		if err != nil && len(out) <= MaxManifestBytes {
			t.Fatalf("accepted %q but not %q: %v", data, out, err)
		}
		if err == nil {
			second, err := again.encode()
			if err != nil || !bytes.Equal(out, second) {
				t.Fatalf("%q became %q (%v)", out, second, err)
			}
		}
	})
}
