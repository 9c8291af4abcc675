package systemtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/testkit"
)

// agent is a running kernex-agent.
type agent struct {
	t    testing.TB
	dir  string
	host *host // nil: this one
	*process
}

func startAgent(t testing.TB, dir, mqtt, token string, args ...string) *agent {
	t.Helper()
	cmd := exec.Command(filepath.Join(bin(t), "kernex-agent"), append([]string{"--state", dir, "--broker", "tcp://" + mqtt}, args...)...)
	cmd.Env = append(os.Environ(), "KERNEX_ENROLL_TOKEN="+token)
	return &agent{t: t, dir: dir, process: start(t, "kernex-agent", cmd)}
}

// id is the device id, once enrolled.
func (a *agent) id() string {
	a.t.Helper()
	var c struct {
		DeviceID string `json:"device_id"`
	}
	b, err := os.ReadFile(filepath.Join(a.dir, "device_config.json"))
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil || c.DeviceID == "" {
		a.t.Fatalf("device id in %s: %q, %v", a.dir, c.DeviceID, err)
	}
	return c.DeviceID
}

// prediction is what the example service answers.
type prediction struct {
	Version string
	Label   string
	Score   float64
}

// predict asks the service that runs below a device's state folder; c reaches
// the device's own network.
func predict(c *http.Client, dir string) (p prediction, err error) {
	addr, err := os.ReadFile(filepath.Join(dir, "state", "http.addr"))
	if err != nil {
		return p, err
	}
	r, err := c.Post("http://"+strings.TrimSpace(string(addr))+"/predict", "application/json", bytes.NewBufferString(`{"features":[4.0,12.5,66,6.4,1455,78,60,2400]}`))
	if err != nil {
		return p, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return p, err
	}
	if r.StatusCode != http.StatusOK {
		return p, fmt.Errorf("the service answers %s: %s", r.Status, b)
	}
	return p, json.Unmarshal(b, &p)
}

// serves waits until every device's service, on this host, answers as version.
func serves(t testing.TB, version string, dirs ...string) {
	t.Helper()
	servesVia(t, http.DefaultClient, version, dirs...)
}

// servesVia is serves for devices in the network that c reaches.
func servesVia(t testing.TB, c *http.Client, version string, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		testkit.Eventually(t, patience, func() error {
			p, err := predict(c, dir)
			if err == nil && p.Version != version {
				err = fmt.Errorf("the service in %s is %s, want %s", dir, p.Version, version)
			}
			return err
		})
	}
}
