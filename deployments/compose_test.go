package deployments_test

import (
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

// ours maps a service of compose.yaml to its program; the others are images of
// other projects.
var ours = map[string]string{
	"broker": "kernex-broker", "agent": "kernex-agent",
	"orchestrator-1": "kernex-orchestrator", "orchestrator-2": "kernex-orchestrator",
}

// listeners are the variables that make a service listen on a port.
var listeners = []string{"KERNEX_HTTP", "KERNEX_INTERNAL", "KERNEX_MQTT", "KERNEX_MQTTS", "VGW_PORT"}

func loadCompose(t *testing.T, env ...string) (*types.Project, error) {
	t.Helper()
	opts, err := cli.NewProjectOptions([]string{filepath.Join(root, "compose.yaml")}, cli.WithWorkingDirectory(root), cli.WithEnv(env))
	if err != nil {
		t.Fatal(err)
	}
	return opts.LoadProject(t.Context())
}

func compose(t *testing.T) *types.Project {
	t.Helper()
	p, err := loadCompose(t, "KERNEX_UID=1000", "KERNEX_GID=1000")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// value is a variable's value, "" when the service does not set it.
func value(s types.ServiceConfig, name string) string {
	if v := s.Environment[name]; v != nil {
		return *v
	}
	return ""
}

func TestComposeRefusesToStartBeforeItsSecretsWereMade(t *testing.T) {
	t.Parallel()
	_, err := loadCompose(t)
	if err == nil || !strings.Contains(err.Error(), "make-secrets.sh") {
		t.Fatalf("without .env: %v, want the command to run", err)
	}
}

func TestEverySettingInComposeExistsInItsProgram(t *testing.T) {
	t.Parallel()
	p := compose(t)
	gateway := gatewaySettings(t)
	for name, s := range p.Services {
		prog := ours[name]
		if prog == "" {
			for v := range s.Environment {
				if strings.HasPrefix(v, "KERNEX_") || strings.HasPrefix(v, "VGW_") && !strings.Contains(gateway, `"`+v+`"`) {
					t.Errorf("service %s sets %s, which its image does not know", name, v)
				}
			}
			continue
		}
		has := settingsOf(t, prog)
		for v := range s.Environment {
			if !has.env[v] {
				t.Errorf("service %s sets %s, which %s does not have", name, v, prog)
			}
		}
		for _, arg := range slices.Concat(s.Entrypoint, s.Command) {
			if f := flagWord.FindString(arg); f != "" && !has.flags[f] {
				t.Errorf("service %s gives %s, which %s does not have", name, f, prog)
			}
		}
	}
	for _, f := range flagWord.FindAllString(strings.Join(p.Services["objects"].Command, " "), -1) {
		if !strings.Contains(gateway, `"`+strings.TrimPrefix(f, "--")+`"`) {
			t.Errorf("the object store gets %s, which it does not have", f)
		}
	}
}

// gatewaySettings is the gateway's source of flags and variables, in the version
// of go.mod, which compose.yaml must name.
func gatewaySettings(t *testing.T) string {
	t.Helper()
	const module = "github.com/versity/versitygw"
	if image := compose(t).Services["objects"].Image; image != "versity/versitygw:"+goMod(t, module) {
		t.Errorf("compose runs %s, the tests run %s", image, goMod(t, module))
	}
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = root
	dir, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	err = filepath.WalkDir(filepath.Join(strings.TrimSpace(string(dir)), "cmd"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		b, err := os.ReadFile(path)
		all.Write(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

func TestEveryPortInComposeHasAListener(t *testing.T) {
	t.Parallel()
	p := compose(t)
	listens := map[string][]string{"postgres": {"5432"}} // the image's own
	for name, s := range p.Services {
		for _, v := range listeners {
			if addr := value(s, v); addr != "" {
				host, port, ok := strings.Cut(addr, ":")
				if !ok || host != "0.0.0.0" {
					t.Errorf("service %s: %s=%s is not reached from other containers", name, v, addr)
				}
				listens[name] = append(listens[name], port)
			}
		}
	}
	for name, s := range p.Services {
		for _, port := range s.Ports {
			if !slices.Contains(listens[name], strconv.FormatUint(uint64(port.Target), 10)) {
				t.Errorf("service %s publishes %d, it listens on %v", name, port.Target, listens[name])
			}
			if port.HostIP != "127.0.0.1" {
				t.Errorf("service %s publishes %s on %q by default", name, port.Published, port.HostIP)
			}
		}
		for v, text := range s.Environment {
			for _, raw := range strings.Split(*text, ",") {
				u, err := url.Parse(raw)
				if err != nil || u.Host == "" {
					continue
				}
				if !slices.Contains(listens[u.Hostname()], u.Port()) {
					t.Errorf("service %s: %s names %s, which listens on %v", name, v, u.Host, listens[u.Hostname()])
				}
			}
		}
		if s.HealthCheck != nil {
			for _, m := range regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindAllStringSubmatch(strings.Join(s.HealthCheck.Test, " "), -1) {
				if !slices.Contains(listens[name], m[1]) {
					t.Errorf("service %s: its health check asks port %s", name, m[1])
				}
			}
		}
	}
	for name, prog := range ours {
		for _, port := range dockerfile(t, p.Services[name].Build.Dockerfile).exposed {
			if !slices.Contains(listens[name], port) {
				t.Errorf("the image of %s exposes %s, compose lets it listen on %v", prog, port, listens[name])
			}
		}
	}
}

func TestEveryMountIsMadeByMakeSecretsOnceAndForAll(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	script := filepath.Join(top, "deployments/docker/make-secrets.sh")
	if err := os.MkdirAll(filepath.Dir(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, []byte(read(t, "deployments/docker/make-secrets.sh")), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, 0, "sh", script, "--host", "fleet.example.com")
	before := map[string]string{}
	p := compose(t)
	abs, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	moved := func(path string) string {
		rel, err := filepath.Rel(abs, path)
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(top, rel)
	}
	for name, s := range p.Secrets {
		path := moved(s.File)
		info, err := os.Stat(path)
		if err != nil {
			t.Errorf("secret %s is not made: %v", name, err)
			continue
		}
		want := fs.FileMode(0o600)
		if strings.HasSuffix(name, ".pem") {
			want = 0o644 // certificates
		}
		if info.Mode().Perm() != want {
			t.Errorf("secret %s has mode %v, want %v", name, info.Mode(), want)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		before[path] = string(b)
	}
	for name, s := range p.Services {
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeBind {
				if info, err := os.Stat(moved(v.Source)); err != nil || !info.IsDir() {
					t.Errorf("service %s mounts %s, which is not made: %v", name, v.Source, err)
				}
			} else if _, ok := p.Volumes[v.Source]; !ok {
				t.Errorf("service %s mounts volume %s, which is not declared", name, v.Source)
			}
		}
	}
	run(t, 0, "openssl", "verify", "-CAfile", filepath.Join(top, ".kernex-compose/ca.pem"),
		"-verify_hostname", "fleet.example.com", filepath.Join(top, ".kernex-compose/broker.pem"))
	run(t, 0, "sh", script)
	for path, old := range before {
		if b, err := os.ReadFile(path); err != nil || string(b) != old {
			t.Errorf("a second run changed %s (%v)", path, err)
		}
	}
	env, err := os.ReadFile(filepath.Join(top, ".env"))
	if err != nil || strings.Count(string(env), "KERNEX_UID=") != 1 {
		t.Errorf(".env after two runs: %q, %v", env, err)
	}
	run(t, 2, "sh", script, "--host", "a b")
}

func TestSecretFilesAreMountedWhereSettingsSay(t *testing.T) {
	t.Parallel()
	for name, s := range compose(t).Services {
		mounted := map[string]bool{}
		for _, sec := range s.Secrets {
			mounted["/run/secrets/"+sec.Source] = true
		}
		used := map[string]bool{}
		words := strings.Join(slices.Concat(s.Entrypoint, s.Command), " ")
		for _, v := range s.Environment {
			words += " " + *v
		}
		for _, path := range regexp.MustCompile(`/run/secrets/[a-z0-9.]+`).FindAllString(words, -1) {
			used[path] = true
			if !mounted[path] {
				t.Errorf("service %s uses %s, which is not mounted", name, path)
			}
		}
		for path := range mounted {
			if !used[path] {
				t.Errorf("service %s mounts %s for nothing", name, path)
			}
		}
	}
}

func TestNoSecretStandsInCompose(t *testing.T) {
	t.Parallel()
	secret := regexp.MustCompile(`(PASSWORD|SECRET|TOKEN|PRIVATE|_KEY)`)
	for name, s := range compose(t).Services {
		for v, text := range s.Environment {
			if secret.MatchString(v) && !strings.HasSuffix(v, "ACCESS_KEY") && !strings.HasSuffix(v, "ACCESS_KEY_ID") &&
				*text != "" && !strings.HasPrefix(*text, "/run/secrets/") && !strings.HasPrefix(*text, "/var/lib/") {
				t.Errorf("service %s: %s is %q", name, v, *text)
			}
			if strings.Contains(*text, "password=") || regexp.MustCompile(`://[^/]*:[^/]*@`).MatchString(*text) {
				t.Errorf("service %s: %s holds a password", name, v)
			}
		}
	}
	for _, ignored := range []string{".kernex-compose/", ".env"} {
		if !strings.Contains(read(t, ".gitignore"), ignored) {
			t.Errorf("git does not ignore %s", ignored)
		}
	}
}

func TestEveryContainerRestartsIsWatchedAndHasNoMoreRightsThanNeeded(t *testing.T) {
	t.Parallel()
	p := compose(t)
	for name, s := range p.Services {
		if s.Restart != "unless-stopped" {
			t.Errorf("service %s: restart %q", name, s.Restart)
		}
		if s.Privileged || s.NetworkMode != "" || s.Pid != "" || len(s.CapAdd) > 0 {
			t.Errorf("service %s reaches into the host", name)
		}
		image := s.Image
		if ours[name] != "" {
			d := dockerfile(t, s.Build.Dockerfile)
			if s.HealthCheck == nil && d.healthcheck == "" && name != "agent" {
				t.Errorf("service %s has no health check", name)
			}
			if abs, err := filepath.Abs(root); err != nil || s.Build.Context != abs {
				t.Errorf("service %s is built from %s", name, s.Build.Context)
			}
		} else if s.HealthCheck == nil {
			t.Errorf("service %s has no health check", name)
		}
		if tag := image[strings.LastIndex(image, ":")+1:]; tag == "latest" || !strings.Contains(image, ":") {
			t.Errorf("service %s: image %s names no version", name, image)
		}
		if name == "postgres" {
			continue // starts as root and changes to its own user
		}
		if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("service %s is not confined", name)
		}
		if strings.HasPrefix(s.User, "0") {
			t.Errorf("service %s runs as root", name)
		}
	}
	if a, b := p.Services["orchestrator-1"], p.Services["orchestrator-2"]; value(a, "KERNEX_COMMAND_KEY_FILE") != value(b, "KERNEX_COMMAND_KEY_FILE") {
		t.Error("the orchestrators have different command keys")
	}
}
