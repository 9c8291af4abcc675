package systemtest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/orchestrator/cmd/kernex/up"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/s3gw"
	"github.com/kernexhq/kernex/pkg/testkit"
	_ "github.com/kernexhq/kernex/pkg/testkit/s3test" // makes this binary the object store's program too
)

// lab is the three programs, Postgres and an object store, each on a host of its
// own, and two hosts for devices.
type lab struct {
	t       *testing.T
	dir     string
	ca      *authority
	db      *database
	dbName  string // the database that orchestrators use
	objects *objects
	broker  *brokerProgram
	orch    [2]*replica
	devices [2]*host
	token   string // of an admin
}

// newLab starts everything but devices; prepare, if given, is called when
// Postgres and the object store run.
func newLab(t *testing.T, prepare ...func(*lab)) *lab {
	t.Helper()
	l := &lab{t: t, dir: dataDir(t), dbName: "kernex"}
	l.ca = newAuthority(t, l.dir)
	l.write("shared.secret", rand.Text()+rand.Text())
	var seed [32]byte
	_, _ = rand.Read(seed[:]) // never fails
	l.write("command.key", base64.StdEncoding.EncodeToString(seed[:]))
	l.write("s3.key", rand.Text())
	l.db = startDatabase(t, newHost(t, "db", "10"), l.ca)
	l.objects = &objects{lab: l, host: newHost(t, "objects", "11")}
	l.objects.start()
	bh := newHost(t, "broker", "20")
	l.broker = &brokerProgram{lab: l, host: bh}
	for i := range l.orch {
		l.orch[i] = &replica{lab: l, host: newHost(t, fmt.Sprintf("orch%d", i+1), fmt.Sprintf("3%d", i+1))}
	}
	for i := range l.devices {
		l.devices[i] = newHost(t, fmt.Sprintf("device%d", i+1), fmt.Sprintf("4%d", i+1))
	}
	for _, f := range prepare {
		f(l)
	}
	l.broker.start()
	for _, r := range l.orch {
		r.start()
	}
	l.ready()
	l.token = l.read("admin.token")
	return l
}

// ready waits until every program says that it is.
func (l *lab) ready() {
	l.t.Helper()
	for _, p := range []prober{l.orch[0], l.orch[1], l.broker} {
		testkit.Eventually(l.t, patience, func() error {
			status, r, err := readyz(p)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("%s: /readyz: %d %+v", p.url(), status, r)
			}
			return err
		})
	}
}

func (l *lab) path(name string) string { return filepath.Join(l.dir, name) }

func (l *lab) write(name, text string) {
	l.t.Helper()
	if err := os.WriteFile(l.path(name), []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) read(name string) string {
	l.t.Helper()
	b, err := os.ReadFile(l.path(name))
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// at is the fleet as it looks through one replica.
func (l *lab) at(i int) *system {
	l.t.Helper()
	c, err := client.New(l.orch[i].url(), l.token)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(c.Close)
	return &system{t: l.t, dir: l.dir, addr: up.Addresses{HTTP: strings.TrimPrefix(l.orch[i].url(), "http://")}, api: c, token: l.token}
}

// agents enrols n devices, labelled fleet=test, on the devices' hosts in turn.
func (l *lab) agents(n int) []*agent {
	l.t.Helper()
	s := l.at(0)
	tok, err := s.api.CreateEnrollmentToken(l.t.Context(), client.NewEnrollmentToken{Labels: fleet.Labels{"fleet": "test"}, MaxUses: n, AutoApprove: true})
	if err != nil {
		l.t.Fatal(err)
	}
	list := make([]*agent, n)
	for i := range list {
		list[i] = l.agent(l.devices[i%2], l.t.TempDir(), tok.Token)
	}
	online(l.t, s.api, n)
	return list
}

// client reaches what a device serves on its own host.
func (l *lab) client(a *agent) *http.Client { return a.host.client() }

// agent starts kernex-agent on a host.
func (l *lab) agent(h *host, dir, token string) *agent {
	l.t.Helper()
	cmd := h.command(filepath.Join(bin(l.t), "kernex-agent"), "--state", dir, "--broker", "mqtts://"+l.broker.host.addr+":8883", "--ca", l.ca.file)
	cmd.Env = append(os.Environ(), "KERNEX_ENROLL_TOKEN="+token)
	return &agent{t: l.t, dir: dir, host: h, process: start(l.t, "kernex-agent", cmd)}
}

// online waits until n devices of the fleet are.
func online(t *testing.T, api *client.Client, n int) {
	t.Helper()
	testkit.Eventually(t, patience, func() error {
		got, err := api.Devices(context.Background(), client.DeviceFilter{Selector: "fleet=test", Status: "online"}, 1000)
		if err == nil && len(got.Items) != n {
			err = fmt.Errorf("%d of %d devices are online", len(got.Items), n)
		}
		return err
	})
}

// objects is the object store.
type objects struct {
	lab     *lab
	host    *host
	gateway *s3gw.Store
}

func (o *objects) start() {
	t := o.lab.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	var err error
	o.gateway, err = s3gw.Start(ctx, s3gw.Config{
		DataDir: o.lab.path("s3"), Listen: o.host.addr + ":7070", AccessKey: "kernex", SecretKey: o.lab.read("s3.key"),
		Executable: "nsenter", Args: []string{"--net=" + netnsDir + o.host.name, "--", os.Args[0]}, Logger: zerolog.Nop(),
	})
	if err != nil {
		t.Fatalf("start the object store: %v", err)
	}
	gateway := o.gateway
	t.Cleanup(func() { _ = gateway.Stop(context.Background()) }) // stopped already is as good
}

func (o *objects) kill() {
	o.lab.t.Helper()
	if err := o.gateway.Stop(o.lab.t.Context()); err != nil {
		o.lab.t.Fatal(err)
	}
}

// prober is a program with /readyz.
type prober interface{ url() string }

// readiness is the answer of /readyz of both servers.
type readiness struct {
	Status  string
	Checks  map[string]string
	Reasons map[string]string
}

func readyz(p prober) (status int, r readiness, err error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := c.Get(p.url() + "/readyz")
	if err != nil {
		return 0, r, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, r, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return resp.StatusCode, r, fmt.Errorf("/readyz: %w: %s", err, b)
	}
	return resp.StatusCode, r, nil
}

// brokerProgram is kernex-broker.
type brokerProgram struct {
	lab  *lab
	host *host
	*process
}

func (b *brokerProgram) url() string { return "http://" + b.host.addr + ":9100" }

func (b *brokerProgram) start() {
	l := b.lab
	l.t.Helper()
	var urls []string
	for _, r := range l.orch {
		urls = append(urls, "https://"+r.host.addr+":8090")
	}
	cert, key := l.ca.issue("broker", b.host.addr)
	b.process = start(l.t, "kernex-broker", b.host.command(filepath.Join(bin(l.t), "kernex-broker"),
		"--mqtts", b.host.addr+":8883", "--tls-cert", cert, "--tls-key", key, "--authorizer", strings.Join(urls, ","), "--authorizer-ca", l.ca.file,
		"--secret-file", l.path("shared.secret"), "--http", b.host.addr+":9100", "--log-format", "json"))
}

// replica is a kernex-orchestrator.
type replica struct {
	lab     *lab
	host    *host
	program string // "" is today's
	*process
}

func (r *replica) url() string { return "http://" + r.host.addr + ":8080" }

func (r *replica) start() {
	l := r.lab
	l.t.Helper()
	program := r.program
	if program == "" {
		program = filepath.Join(bin(l.t), "kernex-orchestrator")
	}
	cert, key := l.ca.issue(r.host.name, r.host.addr)
	cmd := r.host.command(program,
		"--http", r.host.addr+":8080", "--internal", r.host.addr+":8090", "--internal-cert", cert, "--internal-key", key, "--secret-file", l.path("shared.secret"),
		"--postgres-conns", "12", "--s3-endpoint", "http://"+l.objects.host.addr+":7070", "--s3-access-key", "kernex", "--s3-secret-key-file", l.path("s3.key"), "--s3-insecure",
		"--broker", "mqtts://"+l.broker.host.addr+":8883", "--broker-ca", l.ca.file, "--command-key-file", l.path("command.key"),
		"--admin-token-file", l.path("admin.token"), "--log-format", "json")
	cmd.Env = append(os.Environ(), "KERNEX_POSTGRES="+l.db.dsn(databaseRole, l.dbName))
	r.process = start(l.t, "kernex-orchestrator on "+r.host.name, cmd)
}

// kill is kill -9.
func (p *process) kill() {
	p.t.Helper()
	p.stop(syscall.SIGKILL)
}
