package systemtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// insideEnv marks the copy of the test that runs in its own network, where the
// README's ports are free.
const insideEnv = "KERNEX_TEST_README"

// TestTheTourOfTheReadmeWorksWordForWord runs every command of the README's
// tour in a copy of the checkout, in a network of its own when it may make one,
// and checks after each section that what the README says is so.
func TestTheTourOfTheReadmeWorksWordForWord(t *testing.T) {
	t.Parallel()
	if os.Getenv(insideEnv) == "" && os.Geteuid() == 0 {
		cmd := exec.CommandContext(t.Context(), "unshare", "--net", os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "8m")
		cmd.Env = append(os.Environ(), insideEnv+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("the tour failed: %v\n%s", err, out)
		}
		if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Fatalf("the tour did not run:\n%s", out)
		}
		t.Logf("%s", out) // go test -v shows the tour: the README's outputs are from here
		return
	}
	if os.Geteuid() == 0 {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			t.Fatalf("bring up loopback: %v: %s", err, out)
		}
	}
	dir := copyCheckout(t)
	sections := readTour(t, filepath.Join(dir, "README.md"))
	tour := &tour{t: t, dir: dir}
	for _, s := range sections {
		check, ok := checks[s.title]
		if !ok {
			t.Fatalf("section %q of the README has commands and no check here", s.title)
		}
		out := ""
		for i, block := range s.blocks {
			out += tour.run(block, slices.Contains(fails[s.title], i))
		}
		check(tour, out)
		if t.Failed() {
			t.Fatalf("section %q printed:\n%s", s.title, out)
		}
		t.Logf("### %s\n%s", s.title, out)
	}
	if len(sections) != len(checks) {
		t.Fatalf("the README has %d sections with commands, %d are checked", len(sections), len(checks))
	}
	tour.up.stop(syscall.SIGTERM)
}

// fails lists the blocks that the README says exit with 1, by section.
var fails = map[string][]int{"Deploy 2.0.0, which is broken": {0}, "Roll back": {1}}

// checks says what must be true after each section.
var checks = map[string]func(*tour, string){
	"Start": func(o *tour, out string) {
		if got := o.versions(); len(got) != 2 || strings.Count(out, "online") != 2 {
			o.t.Errorf("devices %v", got)
		}
	},
	"Push three versions": func(o *tour, out string) {
		for _, v := range []string{"1.0.0", "1.1.0", "2.0.0"} {
			if strings.Count(out, v) < 2 {
				o.t.Errorf("%s was not pushed and listed", v)
			}
		}
	},
	"Deploy 1.0.0": func(o *tour, out string) {
		o.all("1.0.0")
		if !strings.Contains(out, `"version":"1.0.0"`) {
			o.t.Error("no prediction of 1.0.0")
		}
	},
	"Deploy 1.1.0": func(o *tour, out string) {
		o.all("1.1.0")
		if !strings.Contains(out, `"version":"1.1.0"`) {
			o.t.Error("no prediction of 1.1.0")
		}
	},
	"Deploy 2.0.0, which is broken": func(o *tour, out string) {
		o.all("1.1.0")
		ds, err := o.api().Deployments(o.t.Context(), "failed", 10)
		if err != nil || len(ds.Items) != 1 || !strings.Contains(ds.Items[0].Reason, "self-test failed") || !strings.Contains(out, "self-test failed") {
			o.t.Fatalf("failed deployments %+v, %v, want one with the health check's words", ds.Items, err)
		}
		targets, err := o.api().Targets(o.t.Context(), ds.Items[0].ID, fleet.TargetRolledBack, 10)
		if err != nil || len(targets.Items) != 2 {
			o.t.Errorf("targets rolled back: %+v, %v, want both", targets.Items, err)
		}
	},
	"Roll back": func(o *tour, out string) {
		o.all("1.0.0")
		if !strings.Contains(out, "2.0.0 was never deployed successfully") {
			o.t.Error("the refusal gives no reason")
		}
	},
	"Configure": func(o *tour, out string) { o.configured(out) },
	"Watch": func(o *tour, out string) {
		if !strings.Contains(out, "kernex/v1/fleet/") {
			o.t.Error("the monitor saw nothing")
		}
	},
	"A device of your own": func(o *tour, _ string) {
		testkit.Eventually(o.t, patience, func() error {
			got, err := o.api().Devices(context.Background(), client.DeviceFilter{Selector: "site=berlin", Status: "online"}, 10)
			if err == nil && len(got.Items) != 1 {
				err = fmt.Errorf("%d devices in berlin", len(got.Items))
			}
			return err
		})
	},
}

// tour is the state of a run: what was started stays until the end.
type tour struct {
	t   *testing.T
	dir string
	up  *process
	c   *client.Client
}

// run executes one block as a user's shell would. What does not end by itself,
// make run and the agent, stays in the background.
func (o *tour) run(block string, fail bool) string {
	o.t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", `export PATH="$PWD/bin:$PATH"; `+block)
	cmd.Dir = o.dir
	switch {
	case strings.HasPrefix(block, "make run"):
		o.up = start(o.t, "make run", cmd)
		testkit.Eventually(o.t, 8*patience, func() error { // it builds first
			select {
			case <-o.up.done:
				o.t.Fatalf("make run ended: %s", o.up.output())
			default:
			}
			if !strings.Contains(o.up.output(), "Kernex is ready") {
				return errors.New("make run does not say that it is ready")
			}
			return nil
		})
		o.connect()
		o.all("")
		return ""
	case strings.Contains(block, "kernex-agent "):
		start(o.t, "the tour's own agent", cmd)
		return ""
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if failed := errors.As(err, &exit); err != nil && !failed || failed != fail || failed && exit.ExitCode() != 1 {
		o.t.Fatalf("%s: %v, want exit 1: %v\n%s", block, err, fail, out)
	}
	return string(out)
}

func (o *tour) connect() {
	token, err := os.ReadFile(filepath.Join(o.dir, ".kernex", "admin.token"))
	if err != nil {
		o.t.Fatal(err)
	}
	if o.c, err = client.New("http://127.0.0.1:8080", strings.TrimSpace(string(token))); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(o.c.Close)
}

func (o *tour) api() *client.Client { return o.c }

// versions maps the demo devices that are online to what they report to run.
func (o *tour) versions() map[string]string {
	got, err := o.c.Devices(context.Background(), client.DeviceFilter{Selector: "demo=true", Status: "online"}, 10)
	if err != nil {
		o.t.Fatal(err)
	}
	m := map[string]string{}
	for _, d := range got.Items {
		m[d.ID] = d.BundleVersion
	}
	return m
}

// all waits until both demo devices report the version, and serve it if it is one.
func (o *tour) all(version string) {
	o.t.Helper()
	testkit.Eventually(o.t, patience, func() error {
		n := 0
		for _, v := range o.versions() {
			if v == version {
				n++
			}
		}
		if n != 2 {
			return fmt.Errorf("devices run %v, want %q on both", o.versions(), version)
		}
		return nil
	})
	if version != "" {
		serves(o.t, version, filepath.Join(o.dir, ".kernex/demo/1"), filepath.Join(o.dir, ".kernex/demo/2"))
	}
}

// configured checks what the last two sections did to the device.
func (o *tour) configured(out string) {
	ctx := o.t.Context()
	var id string
	for d := range o.versions() {
		if c, err := o.c.Config(ctx, d); err == nil && c.HeartbeatIntervalS == 5 {
			id = d
		}
	}
	if id == "" {
		o.t.Fatal("no device has the interval of 5 s")
	}
	obeys(o.t, o.c, id)
	if !strings.Contains(out, "rolled_back") {
		o.t.Error("the history that was shown does not tell of the return")
	}
}

type section struct {
	title  string
	blocks []string
}

var fence = regexp.MustCompile("(?s)```sh\n(.*?)```")

// readTour returns the sections that have sh blocks.
func readTour(t *testing.T, file string) []section {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out []section
	for _, part := range strings.Split(string(text), "\n### ")[1:] {
		title, body, _ := strings.Cut(part, "\n")
		var blocks []string
		for _, m := range fence.FindAllStringSubmatch(body, -1) {
			blocks = append(blocks, strings.TrimSpace(m[1]))
		}
		if len(blocks) > 0 {
			out = append(out, section{title, blocks})
		}
	}
	if len(out) == 0 {
		t.Fatal("the README has no tour")
	}
	return out
}

// copyCheckout copies what git knows or would add, as a fresh clone has it.
func copyCheckout(t *testing.T) string {
	t.Helper()
	dir := dataDir(t)
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", `git ls-files -z -co --exclude-standard | while IFS= read -r -d '' f; do [ ! -e "$f" ] || printf '%s\0' "$f"; done | xargs -0 cp --parents -t "$1"`, "bash", dir)
	cmd.Dir = root(t)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copy the checkout: %v: %s", err, out)
	}
	return dir
}
