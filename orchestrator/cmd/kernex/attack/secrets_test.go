package attack

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/agent/run"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/logging"
)

// agentLog is the agent's log behind its redactor, where no line can be read
// before it.
type agentLog struct{ *logbook }

// TestNoLogHoldsASecret runs a device through its life at level debug: it
// enrols with a claim token, downloads by presigned URLs, is sent signed
// commands, is refused and is revoked. No line of any part may hold a token, a
// JWT or a signature; start checks the server's side at the test's end.
func TestNoLogHoldsASecret(t *testing.T) {
	t.Parallel()
	s := start(t)
	claim := s.claimToken(t, "agent", map[string]any{})
	log := agentLog{&logbook{}}
	dir := t.TempDir()
	a, err := agent.New(agent.Config{
		State: dir, Broker: "tcp://" + s.mqtt, EnrollToken: claim, DeviceType: "test", Serial: "s1", LogLevel: "debug",
		Log: logging.Config{Out: log, Format: "json"}, Shim: []string{"/proc/self/exe", run.ShimCommand},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stopped := false
	end := func() {
		if stop(); !stopped {
			stopped = true
			if err := <-ended; err != nil {
				t.Errorf("agent: %v", err)
			}
		}
	}
	t.Cleanup(func() {
		end()
		if t.Failed() {
			t.Logf("the agent says: %s", log)
		}
	})

	var devices fleet.List[fleet.Device]
	eventually(t, func() bool {
		s.call(t, http.MethodGet, "/devices?status=online", nil).into(t, http.StatusOK, &devices)
		return devices.Total == 1
	})
	id := devices.Items[0].ID
	s.call(t, http.MethodPut, "/devices/"+id+"/config", map[string]any{"log_level": "debug"}).into(t, http.StatusOK, nil)
	var b fleet.Bundle
	s.upload(t, goodArchive(t)).into(t, http.StatusCreated, &b)
	var dep fleet.Deployment
	s.call(t, http.MethodPost, "/deployments", map[string]any{"bundle": b.Name, "bundle_version": b.Version, "selector": ""}).into(t, http.StatusCreated, &dep)
	eventually(t, func() bool {
		s.call(t, http.MethodGet, "/deployments/"+dep.ID, nil).into(t, http.StatusOK, &dep)
		return dep.Status.Final()
	})
	if dep.Status != fleet.DeploymentSuccess {
		t.Errorf("the deployment is %s: %s", dep.Status, dep.Reason)
	}
	// Again, with the way to the object store gone: the agent logs what it could
	// not fetch.
	s.path.Refuse()
	var gone fleet.Bundle
	s.upload(t, newerArchive(t)).into(t, http.StatusCreated, &gone)
	before := s.path.Opened()
	s.call(t, http.MethodPost, "/deployments", map[string]any{"bundle": gone.Name, "bundle_version": gone.Version, "selector": ""}).into(t, http.StatusCreated, &dep)
	eventually(t, func() bool { return s.path.Opened() > before+1 })

	// What is refused is logged too.
	for _, h := range []hello{
		{id: id, username: id, password: s.token(t, &device{id: id, key: edKey(t), method: jwt.SigningMethodEdDSA})},
		{id: "x", username: "service", password: s.admin},
		{id: "x", username: "monitor", password: claim},
	} {
		if code := s.dial(t).connect(h); code != unauthorized {
			t.Errorf("CONNACK %d for %s", code, h.username)
		}
	}
	s.call(t, http.MethodGet, "/devices", nil, "Authorization", "Bearer kx_"+strings.Repeat("A", 43)).refused(t, http.StatusUnauthorized, fleet.CodeUnauthorized)
	s.call(t, http.MethodGet, "/bundles/"+b.ID+"/download", nil).into(t, http.StatusFound, nil)
	s.call(t, http.MethodPost, "/devices/"+id+"/revoke", nil).into(t, http.StatusOK, nil)
	eventually(t, func() bool { return strings.Contains(log.String(), "CONNACK 5") })
	end()
	log.check(t, s.admin, claim)
	s.logs.check(t, claim)
}
