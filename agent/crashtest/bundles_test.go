package crashtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// What the scripts leave as evidence is outside of the state directory, which
// a power cut turns back.
const (
	deployScript = `#!/bin/sh
: > $KERNEX_STATE_DIR/dying
: > $KERNEX_STATE_DIR/serving
echo ok $KERNEX_VERSION $KERNEX_DEPLOYMENT_ID >> $KERNEX_STATE_DIR/../../did
`
	runScript = `#!/bin/sh
echo $KERNEX_VERSION > $KERNEX_STATE_DIR/serving
exec sleep 1000
`
	healthScript = `#!/bin/sh
n=0
while read v 2>/dev/null < $KERNEX_STATE_DIR/serving; [ "$v" != "$KERNEX_VERSION" ]; do
  n=$((n+1)); [ $n -gt 300 ] && exit 1; sleep 0.01
done
`
	sickRun    = "#!/bin/sh\necho dead > $KERNEX_STATE_DIR/dying\nexit 9\n"
	sickHealth = "#!/bin/sh\nwhile ! [ -s $KERNEX_STATE_DIR/dying ]; do sleep 0.01; done\nsleep 0.03\nexit 1\n"
	manifest   = `"deploy":{"script":"deploy.sh"},"health":{"script":"health.sh","interval_s":1,"timeout_s":10,"successes":1,"window_s":2},"run":{"command":["./run.sh"],"restart":"never","stop_timeout_s":2}`
)

// bundles are the releases of every scenario.
type bundles struct{ old, good, sick, broken protocol.BundleRef }

func (s *server) bundles(t *testing.T) bundles {
	t.Helper()
	files := func(changes ...string) map[string]string {
		f := map[string]string{"deploy.sh": deployScript, "run.sh": runScript, "health.sh": healthScript, "share/model/weights": strings.Repeat("0123456789abcdef", 600)}
		for i := 0; i < len(changes); i += 2 {
			f[changes[i]] = changes[i+1]
		}
		return f
	}
	return bundles{
		old:    s.pack(t, "1.0.0", manifest, files()),
		good:   s.pack(t, "2.0.0", manifest, files()),
		sick:   s.pack(t, "2.1.0", manifest, files("run.sh", sickRun, "health.sh", sickHealth)),
		broken: s.pack(t, "2.2.0", `"rollback":{"script":"rollback.sh"},`+manifest, files("deploy.sh", "#!/bin/sh\nexit 3\n", "rollback.sh", "#!/bin/sh\n: > $KERNEX_STATE_DIR/serving\n")),
	}
}

func (s *server) pack(t *testing.T, version, manifest string, files map[string]string) protocol.BundleRef {
	t.Helper()
	const partSize = 4 << 10
	dir := t.TempDir()
	text := `{"schema":1,"name":"demo","version":"` + version + `",` + manifest + `}`
	err := os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(text), 0o600)
	for name, content := range files {
		path := filepath.Join(dir, name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o700))
	}
	var out bytes.Buffer
	info, berr := bundle.Build(dir, &out, bundle.Limits{})
	if err = errors.Join(err, berr); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(out.Bytes())
	ref := protocol.BundleRef{Name: "demo", Version: version, Release: info.Release, Checksum: hex.EncodeToString(sum[:]), Size: int64(out.Len()), PartSize: partSize}
	for part := range slices.Chunk(out.Bytes(), partSize) {
		p := sha256.Sum256(part)
		ref.Parts = append(ref.Parts, base64.RawURLEncoding.EncodeToString(p[:]))
	}
	s.files[ref.Checksum] = out.Bytes()
	ref.URL = s.archives.URL + "/" + ref.Checksum
	return ref
}

// scenario is a deployment that is interrupted.
type scenario struct {
	name  string
	base  int // successful deployments before: old, then good
	kind  protocol.CommandType
	ref   protocol.BundleRef
	want  fleet.TargetState // undisturbed
	code  fleet.Code
	reset bool // a configuration is sent too
}

func (b bundles) scenarios() []scenario {
	return []scenario{
		{"first", 0, protocol.CommandDeploy, b.old, fleet.TargetSucceeded, "", false},
		{"happy", 1, protocol.CommandDeploy, b.good, fleet.TargetSucceeded, "", true},
		{"failing health", 1, protocol.CommandDeploy, b.sick, fleet.TargetRolledBack, fleet.CodeHealth, false},
		{"failing deploy", 1, protocol.CommandDeploy, b.broken, fleet.TargetRolledBack, fleet.CodeScript, false},
		{"rollback", 2, protocol.CommandRollback, b.old, fleet.TargetSucceeded, "", false},
	}
}

// before is the release that the scenario begins on, "" for none.
func (s scenario) before(b bundles) string {
	return []string{"", b.old.Release, b.good.Release}[s.base]
}

// order sends the scenario's commands and returns the deployment's.
func (s scenario) order(v *view) protocol.Command {
	if s.reset {
		c := fleet.DefaultConfig()
		c.Version, c.Metadata = 7, map[string]any{"threshold": 0.5}
		v.order(protocol.Command{Type: protocol.CommandConfigure, Configure: &protocol.Configure{Config: c}})
	}
	return v.order(deploy(s.kind, s.ref))
}

func deploy(kind protocol.CommandType, ref protocol.BundleRef) protocol.Command {
	return protocol.Command{Type: kind, Deploy: &protocol.Deploy{Deployment: fleet.NewID("dep"), Bundle: ref, StepTimeoutS: 30}}
}
