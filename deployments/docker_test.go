package deployments_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// image is what a Dockerfile of ours says.
type image struct {
	text        string
	base        string   // of the last stage
	sources     []string // copied from the repository
	build       string   // the command that builds the program
	user        string
	healthcheck string
	entrypoint  string
	exposed     []string
}

// dockerfile reads a Dockerfile by its path in the repository.
func dockerfile(t *testing.T, path string) image {
	t.Helper()
	text := read(t, path)
	d := image{text: text}
	joined := regexp.MustCompile(`\\\n\s*`).ReplaceAllString(regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(text, ""), " ")
	for line := range strings.Lines(joined) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch rest := strings.Join(f[1:], " "); f[0] {
		case "FROM":
			d.base, d.user = f[1], ""
		case "COPY":
			if !strings.Contains(rest, "--from=") {
				d.sources = append(d.sources, f[1:len(f)-1]...)
			}
		case "RUN":
			if strings.Contains(rest, "go build") {
				d.build = rest
			}
		case "USER":
			d.user = rest
		case "HEALTHCHECK":
			d.healthcheck = rest
		case "ENTRYPOINT":
			d.entrypoint = rest
		case "EXPOSE":
			d.exposed = f[1:]
		}
	}
	return d
}

func dockerfiles(t *testing.T) map[string]image {
	t.Helper()
	all := map[string]image{}
	for name := range programs {
		all[name] = dockerfile(t, "deployments/docker/"+strings.TrimPrefix(name, "kernex-")+".Dockerfile")
	}
	return all
}

func TestImagesAreStaticUnprivilegedAndReproducible(t *testing.T) {
	t.Parallel()
	for name, d := range dockerfiles(t) {
		for _, want := range []string{"CGO_ENABLED=0", "-trimpath", "-buildvcs=false", "-buildid=", programs[name], "GOARM=${TARGETVARIANT#v}"} {
			if !strings.Contains(d.build, want) {
				t.Errorf("%s is built without %s", name, want)
			}
		}
		if !strings.Contains(d.text, "ARG GO_VERSION="+goMod(t, "go")+"\n") {
			t.Errorf("%s is not built by the Go of go.mod, %s", name, goMod(t, "go"))
		}
		if !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(d.user) {
			t.Errorf("%s runs as %q, want a user and group by number", name, d.user)
		}
		if !strings.Contains(d.entrypoint, name) || !strings.Contains(d.text, "org.opencontainers.image.version") {
			t.Errorf("%s: entry point %s, or no labels", name, d.entrypoint)
		}
		if !strings.Contains(d.text, "ca-certificates.crt") {
			t.Errorf("%s trusts no certificate authority", name)
		}
		if name == "kernex-agent" {
			continue // listens on nothing, and needs a shell
		}
		if d.base != "scratch" || !strings.Contains(d.healthcheck, `["/`+name+`", "healthcheck"]`) {
			t.Errorf("%s: base %s, health check %s", name, d.base, d.healthcheck)
		}
	}
}

func TestImagesContainEverySourceThatTheirProgramImports(t *testing.T) {
	t.Parallel()
	ignore := read(t, ".dockerignore")
	for name, d := range dockerfiles(t) {
		for _, src := range d.sources {
			if _, err := os.Stat(filepath.Join(root, src)); err != nil {
				t.Errorf("%s copies %s: %v", name, src, err)
			}
			if !strings.Contains(ignore, "\n!"+strings.TrimSuffix(src, "/")+"\n") {
				t.Errorf("%s copies %s, which .dockerignore keeps out", name, src)
			}
		}
		cmd := exec.Command("go", "list", "-deps", "-f", "{{if and .Module .Module.Main}}{{.ImportPath}}{{end}}", programs[name])
		cmd.Dir = root
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("list what %s imports: %v", name, err)
		}
		for _, pkg := range strings.Fields(string(out)) {
			top, _, _ := strings.Cut(strings.TrimPrefix(pkg, goMod(t, "module")+"/"), "/")
			if !slices.Contains(d.sources, top+"/") {
				t.Errorf("%s imports %s, whose folder is not copied", name, pkg)
			}
		}
	}
}

func TestTheBuildContextHoldsNoSecretsAndNoData(t *testing.T) {
	t.Parallel()
	lines := strings.Fields(regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(read(t, ".dockerignore"), ""))
	if len(lines) == 0 || lines[0] != "*" {
		t.Fatal(".dockerignore does not begin by keeping everything out")
	}
	for _, l := range lines {
		if strings.HasPrefix(l, "!.") || l == "!bin" {
			t.Errorf(".dockerignore lets %s in", l)
		}
	}
}

func TestHealthcheckFailsWhenNothingAnswers(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"kernex-broker", "kernex-orchestrator"} {
		cmd := exec.Command(program(t, name), "healthcheck")
		cmd.Env = append(os.Environ(), "KERNEX_HTTP=127.0.0.1:1")
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(out), "127.0.0.1:1") {
			t.Errorf("%s healthcheck: %v, want status 1 and the address\n%s", name, err, out)
		}
	}
}
