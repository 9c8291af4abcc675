package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
)

// program is the server as `make build` builds it.
var program string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "edge-inference")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "server")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", program, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the server: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// releases holds each version extracted, built once: packing a program of
// several megabytes takes seconds under the race detector.
var releases = map[string]func() (string, error){
	"1.0.0": sync.OnceValues(func() (string, error) { return buildAndExtract("1.0.0") }),
	"1.1.0": sync.OnceValues(func() (string, error) { return buildAndExtract("1.1.0") }),
	"2.0.0": sync.OnceValues(func() (string, error) { return buildAndExtract("2.0.0") }),
}

func release(t *testing.T, version string) string {
	t.Helper()
	dir, err := releases[version]()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// sourceOf copies a version's folder and puts the program into it.
func sourceOf(version string) (string, error) {
	dir, err := os.MkdirTemp(filepath.Dir(program), "source")
	if err != nil {
		return "", err
	}
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", version))); err != nil {
		return "", err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	// A server that make has left in the folder was copied too.
	if err := os.RemoveAll(filepath.Join(dir, "server")); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "server"), data, 0o755)
}

// buildAndExtract builds one version as a user does and extracts it as an
// agent does.
func buildAndExtract(version string) (string, error) {
	source, err := sourceOf(version)
	if err != nil {
		return "", err
	}
	var archive bytes.Buffer
	info, err := bundle.Build(source, &archive, bundle.Limits{})
	if err != nil {
		return "", err
	}
	if info.Manifest.Version != version {
		return "", fmt.Errorf("folder %s holds version %s", version, info.Manifest.Version)
	}
	dir, err := os.MkdirTemp(filepath.Dir(program), "release")
	if err != nil {
		return "", err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	_, err = bundle.Extract(&archive, bundle.RootFS{Root: root}, bundle.Limits{})
	return dir, errors.Join(err, root.Close())
}

func TestEachVersionBuildsTheSameReleaseAgain(t *testing.T) {
	t.Parallel()
	for version := range releases {
		built, err := bundle.Check(release(t, version))
		if err != nil {
			t.Fatal(err)
		}
		source, err := sourceOf(version)
		if err != nil {
			t.Fatal(err)
		}
		again, err := bundle.FilledManifest(source)
		if err != nil {
			t.Fatal(err)
		}
		if bundle.ReleaseID(again) != built.Release {
			t.Errorf("%s: another release", version)
		}
	}
}

// device is where releases run one after the other.
type device struct {
	id    string
	state string
}

func (d device) command(dir, version string, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "KERNEX_DEVICE_ID=" + d.id, "KERNEX_DEPLOYMENT_ID=dep-" + version,
		"KERNEX_VERSION=" + version, "KERNEX_STATE_DIR=" + d.state, "KERNEX_RELEASE_DIR=" + dir, "KERNEX_CONFIG_THRESHOLD=0.6"}
	return cmd
}

// start runs deploy.sh and then the server, until the test or stop ends it.
func (d device) start(t *testing.T, dir, version string) (stop func()) {
	t.Helper()
	if out, err := d.command(dir, version, "./deploy.sh").CombinedOutput(); err != nil {
		t.Fatalf("deploy.sh of %s: %v\n%s", version, err, out)
	}
	cmd := d.command(dir, version, "./server", "serve", "--model", "model.json")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("server %s: %v\n%s", version, err, &output)
		}
	}
	t.Cleanup(stop)
	return stop
}

// waitHealth runs health.sh until its output contains want.
func (d device) waitHealth(t *testing.T, dir, version, want string, healthy bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		out, err := d.command(dir, version, "./health.sh").CombinedOutput()
		if (err == nil) == healthy && strings.Contains(string(out), want) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("health of %s: %v, %q; want healthy = %t, %q", version, err, out, healthy, want)
		case <-tick.C:
		}
	}
}

func (d device) predict(t *testing.T, body string) (int, prediction) {
	t.Helper()
	addr, err := os.ReadFile(filepath.Join(d.state, addrFile))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post("http://"+strings.TrimSpace(string(addr))+"/predict", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var p prediction
	if err := json.NewDecoder(res.Body).Decode(&p); err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, p
}

const worn = `{"features":[4.0,12.5,66,6.4,1455,78,60,2400]}`

func TestADeviceGoesThroughTheThreeVersions(t *testing.T) {
	t.Parallel()
	d := device{id: "dev1", state: t.TempDir()}
	v100, v110, v200 := release(t, "1.0.0"), release(t, "1.1.0"), release(t, "2.0.0")

	stop := d.start(t, v100, "1.0.0")
	d.waitHealth(t, v100, "1.0.0", "", true)
	_, first := d.predict(t, worn)
	if first.Version != "1.0.0" || first.Label != "bearing_fault" {
		t.Fatalf("1.0.0 answers %+v", first)
	}
	// Before the switch the next version must not take the old server for itself.
	d.waitHealth(t, v110, "1.1.0", "version 1.0.0 of device dev1 answers, want version 1.1.0", false)
	stop()
	d.waitHealth(t, v100, "1.0.0", "has not written its address yet", false)

	stop = d.start(t, v110, "1.1.0")
	d.waitHealth(t, v110, "1.1.0", "", true)
	_, second := d.predict(t, worn)
	if second.Version != "1.1.0" || second.Label != "bearing_fault" || second.Score == first.Score {
		t.Fatalf("1.1.0 answers %+v after %+v", second, first)
	}
	stop()

	stop = d.start(t, v200, "2.0.0")
	d.waitHealth(t, v200, "2.0.0", `self-test failed: model edge-2.0.0 scored 0.005 for "bearing_fault" on the reference sample, want >= 0.90`, false)
	stop()

	stop = d.start(t, v110, "1.1.0")
	d.waitHealth(t, v110, "1.1.0", "", true)
	stop()
	log, err := os.ReadFile(filepath.Join(d.state, "deployments.log"))
	if err != nil || strings.Count(string(log), "\n") != 3 { // the return to 1.1.0 is the same deployment again
		t.Fatalf("deployments.log: %v\n%s", err, log)
	}
	for _, dir := range []string{v100, v110, v200} {
		if _, err := bundle.Check(dir); err != nil {
			t.Errorf("running it has changed the release: %v", err)
		}
	}
}

func TestManyDevicesRunOnOneHostAndNoneIsTakenForAnother(t *testing.T) {
	t.Parallel()
	dir := release(t, "1.0.0")
	one, two := device{"dev1", t.TempDir()}, device{"dev2", t.TempDir()}
	one.start(t, dir, "1.0.0")
	two.start(t, dir, "1.0.0")
	one.waitHealth(t, dir, "1.0.0", "", true)
	two.waitHealth(t, dir, "1.0.0", "", true)
	stray, err := os.ReadFile(filepath.Join(one.state, addrFile))
	if err != nil {
		t.Fatal(err)
	}
	three := device{"dev3", t.TempDir()}
	if err := os.WriteFile(filepath.Join(three.state, addrFile), stray, 0o644); err != nil {
		t.Fatal(err)
	}
	three.waitHealth(t, dir, "1.0.0", "of device dev1 answers, want version 1.0.0 of device dev3", false)
}

func TestAKilledServerIsNotHealthyAndItsSuccessorIs(t *testing.T) {
	t.Parallel()
	dir := release(t, "1.0.0")
	d := device{"dev1", t.TempDir()}
	cmd := d.command(dir, "1.0.0", "./server", "serve")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d.waitHealth(t, dir, "1.0.0", "", true)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatal("a killed server ended well")
	}
	d.waitHealth(t, dir, "1.0.0", "does not answer", false)
	d.start(t, dir, "1.0.0")
	d.waitHealth(t, dir, "1.0.0", "", true)
}

func TestRequestsThatAreNoSampleAreRefused(t *testing.T) {
	t.Parallel()
	dir := release(t, "1.0.0")
	d := device{"dev1", t.TempDir()}
	d.start(t, dir, "1.0.0")
	d.waitHealth(t, dir, "1.0.0", "", true)
	for name, body := range map[string]string{
		"empty": "", "no object": "[]", "too few": `{"features":[1]}`, "unknown key": `{"feature":[1,2,3,4,5,6,7,8]}`,
		"trailing": worn + worn, "text": `{"features":"x"}`, "too large": `{"features":[` + strings.Repeat("1,", 50_000) + `1]}`,
		"out of range": `{"features":[1e999,0,0,0,0,0,0,0]}`,
	} {
		if status, _ := d.predict(t, body); status != http.StatusBadRequest {
			t.Errorf("%s: status %d", name, status)
		}
	}
}

func TestSettingsAndModelsThatCannotWorkAreRefusedBeforeTheSwitch(t *testing.T) {
	t.Parallel()
	good, err := os.ReadFile("../1.0.0/model.json")
	if err != nil {
		t.Fatal(err)
	}
	swap := func(from, to string) string {
		if !bytes.Contains(good, []byte(from)) {
			t.Fatalf("the model has no %s", from)
		}
		return strings.Replace(string(good), from, to, 1)
	}
	for name, tc := range map[string]struct {
		args      []string
		threshold string
		model     string
		want      string
	}{
		"good":              {[]string{"check"}, "0.25", string(good), ""},
		"no command":        {nil, "", string(good), "usage"},
		"unknown command":   {[]string{"stop"}, "", string(good), `unknown command "stop"`},
		"unknown flag":      {[]string{"check", "--port", "1"}, "", string(good), "not defined"},
		"threshold text":    {[]string{"check"}, "high", string(good), `threshold is "high"`},
		"threshold NaN":     {[]string{"check"}, "NaN", string(good), `threshold is "NaN"`},
		"threshold 1":       {[]string{"check"}, "1", string(good), `threshold is "1"`},
		"model empty":       {[]string{"check"}, "", "", "EOF"},
		"model unknown key": {[]string{"check"}, "", swap(`"labels"`, `"lables"`), "lables"},
		"one label":         {[]string{"check"}, "", swap(`"bearing_fault"]`, `"ok"]`), "want two"},
		"no deviation":      {[]string{"check"}, "", swap(`"std": 1.6`, `"std": 0`), "standard deviation 0"},
		"reference short":   {[]string{"check"}, "", swap(`[4,12.5,`, `[4,`), "reference sample has 7 features"},
		"bias missing":      {[]string{"check"}, "", swap(`"bias": [`, `"bias": [1, `), "2 biases"},
		"model too large":   {[]string{"check"}, "", strings.Repeat(" ", maxModelBytes+1), "larger than"},
	} {
		path := filepath.Join(t.TempDir(), "model.json")
		if err := os.WriteFile(path, []byte(tc.model), 0o600); err != nil {
			t.Fatal(err)
		}
		args := tc.args
		if slices.Equal(args, []string{"check"}) {
			args = append(slices.Clone(args), "--model", path)
		}
		env := map[string]string{"KERNEX_STATE_DIR": t.TempDir(), "KERNEX_CONFIG_THRESHOLD": tc.threshold}
		err := run(t.Context(), args, func(key string) string { return env[key] }, io.Discard)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if err := run(t.Context(), []string{"check"}, func(string) string { return "" }, io.Discard); err == nil || !strings.Contains(err.Error(), "KERNEX_STATE_DIR") {
		t.Errorf("no state directory: %v", err)
	}
}

func TestAScoreThatIsNoNumberIsAnError(t *testing.T) {
	t.Parallel()
	m, err := LoadModel("../1.1.0/model.json")
	if err != nil {
		t.Fatal(err)
	}
	inf := math.Inf(1)
	if score, err := m.Score([]float64{inf, -inf, inf, -inf, inf, -inf, inf, -inf}); err == nil {
		t.Fatalf("score %v", score)
	}
}

func TestThereAreExactlyThreeVersions(t *testing.T) {
	t.Parallel()
	var found []string
	err := fs.WalkDir(os.DirFS(".."), ".", func(p string, _ fs.DirEntry, err error) error {
		if filepath.Base(p) == bundle.ManifestName {
			found = append(found, p)
		}
		return err
	})
	if want := []string{"1.0.0/manifest.json", "1.1.0/manifest.json", "2.0.0/manifest.json"}; err != nil || !slices.Equal(found, want) {
		t.Fatalf("%q, %v", found, err)
	}
}
