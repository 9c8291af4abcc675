package systemtest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/pkg/testkit/s3test"
)

// external is a fleet whose broker is Mosquitto, with the configuration that
// deployments/mosquitto has, and client certificates.
type external struct {
	*system
	roots   string // file with the authority of Mosquitto's certificate
	devices string // mqtts:// addresses of the three listeners
	enroll  string
	service string
	secret  string // of the user service
	broker  *process
}

// startExternal starts an orchestrator, which makes the CA, and then Mosquitto.
func startExternal(t *testing.T, args ...string) *external {
	t.Helper()
	dir, store := dataDir(t), s3test.Start(t)
	e := &external{system: &system{t: t, dir: dir}, roots: filepath.Join(dir, "roots.pem"), secret: rand.Text()}
	for name, text := range map[string]string{"s3.key": store.SecretKey, "service.password": e.secret} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ports := freePorts(t, 3)
	for i, url := range []*string{&e.devices, &e.enroll, &e.service} {
		*url = "mqtts://127.0.0.1:" + ports[i]
	}
	serverCertificate(t, dir)

	cmd := exec.Command(filepath.Join(bin(t), "kernex-orchestrator"), append([]string{
		"--http", "127.0.0.1:0", "--postgres", testkit.Postgres(t), "--s3-endpoint", store.URL, "--s3-region", store.Region, "--s3-insecure",
		"--s3-access-key", store.AccessKey, "--s3-secret-key-file", filepath.Join(dir, "s3.key"),
		"--broker", e.service, "--broker-ca", e.roots, "--broker-username", "service", "--broker-password-file", filepath.Join(dir, "service.password"),
		"--command-key-file", filepath.Join(dir, "command.key"), "--admin-token-file", filepath.Join(dir, "admin.token"),
		"--ca-key-file", filepath.Join(dir, "devices-ca.key"), "--ca-cert-file", filepath.Join(dir, "devices-ca.pem"),
		"--log-format", "json"}, args...)...)
	e.proc = start(t, "kernex-orchestrator", cmd)
	e.addr.HTTP = e.httpAddress()
	e.write("devices.crl", e.get("/pki/devices.crl"))
	if !bytes.Equal(e.get("/pki/devices-ca.pem"), e.read("devices-ca.pem")) {
		t.Error("/pki/devices-ca.pem is not the CA's certificate")
	}
	e.startMosquitto(ports)
	testkit.Eventually(t, patience, func() error { _, err := e.tryGet("/readyz"); return err })
	e.token = strings.TrimSpace(string(e.read("admin.token")))
	var err error
	if e.api, err = client.New("http://"+e.addr.HTTP, e.token); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.api.Close)
	return e
}

// freePorts returns ports that nobody listens on now.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, port)
	}
	return ports
}

// startMosquitto runs Mosquitto with the checked-in configuration; only folder,
// ports and user are another's.
func (e *external) startMosquitto(ports []string) {
	e.t.Helper()
	source := filepath.Join(root(e.t), "deployments", "mosquitto")
	for _, name := range []string{"enroll.acl", "devices.acl", "services.acl"} {
		b, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			e.t.Fatal(err)
		}
		e.write(name, b)
	}
	e.write("passwords", nil)
	for _, login := range [][2]string{{"service", e.secret}, {"monitor", "watch"}} {
		if out, err := exec.Command("mosquitto_passwd", "-b", filepath.Join(e.dir, "passwords"), login[0], login[1]).CombinedOutput(); err != nil {
			e.t.Fatalf("mosquitto_passwd: %v: %s", err, out)
		}
	}
	conf, err := os.ReadFile(filepath.Join(source, "mosquitto.conf"))
	if err != nil {
		e.t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		e.t.Fatal(err)
	}
	text := strings.NewReplacer("/etc/mosquitto/kernex", e.dir, "#crlfile", "crlfile",
		"listener 8883", "listener "+ports[0]+" 127.0.0.1", "listener 8884", "listener "+ports[1]+" 127.0.0.1", "listener 8885", "listener "+ports[2]+" 127.0.0.1",
	).Replace(string(conf)) + "\nuser " + me.Username + "\n"
	e.write("mosquitto.conf", []byte(text))
	e.broker = start(e.t, "mosquitto", exec.Command("mosquitto", "-c", filepath.Join(e.dir, "mosquitto.conf")))
}

func (e *external) write(name string, b []byte) {
	e.t.Helper()
	if err := os.WriteFile(filepath.Join(e.dir, name), b, 0o600); err != nil {
		e.t.Fatal(err)
	}
}

func (e *external) read(name string) []byte {
	e.t.Helper()
	b, err := os.ReadFile(filepath.Join(e.dir, name))
	if err != nil {
		e.t.Fatal(err)
	}
	return b
}

// httpAddress waits for the orchestrator's line that says where it listens.
func (e *external) httpAddress() (addr string) {
	e.t.Helper()
	testkit.Eventually(e.t, patience, func() error {
		select {
		case <-e.proc.done:
			e.t.Fatalf("kernex-orchestrator ended: %s", e.proc.output())
		default:
		}
		for _, line := range lines(e.proc) {
			var l struct{ Message, HTTP string }
			if json.Unmarshal([]byte(line), &l) == nil && l.Message == "orchestrator running" {
				addr = l.HTTP
				return nil
			}
		}
		return errors.New("the orchestrator does not run yet")
	})
	return addr
}

func (e *external) tryGet(path string) ([]byte, error) {
	r, err := http.Get("http://" + e.addr.HTTP + path)
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", path, r.Status, b)
	}
	return b, err
}

func (e *external) get(path string) []byte {
	e.t.Helper()
	b, err := e.tryGet(path)
	if err != nil {
		e.t.Fatal(err)
	}
	return b
}

// device starts an agent, with a token or enrolled already.
func (e *external) device(dir, token string) *agent {
	e.t.Helper()
	return startAgent(e.t, dir, "unused", token, "--broker", e.devices, "--enroll-broker", e.enroll, "--ca", e.roots)
}

// fleet enrols n devices and waits until they are online.
func (e *external) fleet(n int) []*agent {
	e.t.Helper()
	tok, err := e.api.CreateEnrollmentToken(e.t.Context(), client.NewEnrollmentToken{Labels: fleet.Labels{"fleet": "test"}, MaxUses: n, AutoApprove: true})
	if err != nil {
		e.t.Fatal(err)
	}
	list := make([]*agent, n)
	for i := range list {
		list[i] = e.device(e.t.TempDir(), tok.Token)
	}
	e.online(n)
	return list
}

func (e *external) online(n int) {
	e.t.Helper()
	testkit.Eventually(e.t, patience, func() error {
		got, err := e.api.Devices(context.Background(), client.DeviceFilter{Selector: "fleet=test", Status: "online"}, 1000)
		if err == nil && len(got.Items) != n {
			err = fmt.Errorf("%d of %d devices are online", len(got.Items), n)
		}
		return err
	})
}

// leaf reads a device's client certificate.
func leaf(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "identity", "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(block(t, b))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// block returns what the one PEM block in text holds.
func block(t *testing.T, text []byte) []byte {
	t.Helper()
	b, rest := pem.Decode(text)
	if b == nil || len(rest) > 0 {
		t.Fatalf("not one PEM block: %q", text)
	}
	return b.Bytes
}

// TestTheTourWithMosquittoAndClientCertificates is the README's tour on three
// hosts' programs with Mosquitto in between, whose certificates for devices live
// for a minute: they are renewed on the way.
func TestTheTourWithMosquittoAndClientCertificates(t *testing.T) {
	t.Parallel()
	e := startExternal(t, "--device-cert-life", "1m")
	agents := e.fleet(2)
	dirs := []string{agents[0].dir, agents[1].dir}
	first := leaf(t, dirs[0])
	for _, v := range []string{"1.0.0", "1.1.0", "2.0.0"} {
		e.must("bundle", "push", filepath.Join(bin(t), v))
	}
	deploy := func(v string) (string, int) {
		return e.kernex("deploy", "--bundle", "edge-inference", "--version", v, "--selector", "fleet=test")
	}
	for _, v := range []string{"1.0.0", "1.1.0"} {
		if out, code := deploy(v); code != 0 {
			t.Fatalf("deploy %s: exit %d: %s", v, code, out)
		}
		serves(t, v, dirs...)
	}
	if out, code := deploy("2.0.0"); code != 1 || !strings.Contains(out, "self-test failed") {
		t.Fatalf("deploy 2.0.0: exit %d: %s", code, out)
	}
	serves(t, "1.1.0", dirs...)
	e.must("rollback", "--version", "1.0.0", "--selector", "fleet=test")
	serves(t, "1.0.0", dirs...)

	id := agents[0].id()
	e.must("device", "config", "set", id, "--heartbeat-interval", "5")
	testkit.Eventually(t, patience, func() error {
		d, err := e.api.Device(context.Background(), id)
		if err == nil && (d.ConfigReported != d.ConfigVersion || d.ConfigOutcome != "applied") {
			err = fmt.Errorf("config %d, reported %d, %s", d.ConfigVersion, d.ConfigReported, d.ConfigOutcome)
		}
		return err
	})
	h, err := e.api.History(t.Context(), id, 10)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range h.Items {
		got = append(got, entry.Kind+" "+entry.Version+" "+entry.Status)
	}
	if want := []string{"rollback 1.0.0 success", "deploy 2.0.0 rolled_back", "deploy 1.1.0 success", "deploy 1.0.0 success"}; !slices.Equal(got, want) {
		t.Errorf("history %q, want %q", got, want)
	}

	testkit.Eventually(t, patience, func() error {
		if c := leaf(t, dirs[0]); c.SerialNumber.Cmp(first.SerialNumber) == 0 {
			return fmt.Errorf("the certificate until %s was not renewed", c.NotAfter)
		}
		return nil
	})
	// The one of the enrolment would not do any more.
	agents[0].stop(syscall.SIGTERM)
	e.online(1)
	e.device(dirs[0], "")
	e.online(2)
}

// TestAPendingDeviceGetsItsCertificateOnceItIsApproved has no restricted login to
// wait with: it asks by enrolling.
func TestAPendingDeviceGetsItsCertificateOnceItIsApproved(t *testing.T) {
	t.Parallel()
	e := startExternal(t)
	a := e.device(t.TempDir(), "")
	var id string
	testkit.Eventually(t, patience, func() error {
		got, err := e.api.Devices(context.Background(), client.DeviceFilter{Status: "pending"}, 10)
		if err == nil && len(got.Items) != 1 {
			err = fmt.Errorf("%d devices are pending", len(got.Items))
		}
		if err == nil {
			id = got.Items[0].ID
		}
		return err
	})
	if _, err := e.api.Approve(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() error {
		d, err := e.api.Device(context.Background(), id)
		if err == nil && d.Status != "online" {
			err = fmt.Errorf("the approved device is %s", d.Status)
		}
		return err
	})
	if c := leaf(t, a.dir); c.Subject.CommonName != id {
		t.Errorf("the certificate is for %q, want %s", c.Subject.CommonName, id)
	}
}

// serverCertificate writes Mosquitto's certificate for 127.0.0.1, its key and
// the authority that made it.
func serverCertificate(t *testing.T, dir string) {
	t.Helper()
	authority, authorityKey := &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, KeyUsage: x509.KeyUsageCertSign}, newKey(t)
	sign(t, filepath.Join(dir, "roots.pem"), authority, authority, authorityKey, authorityKey)
	key := newKey(t)
	server := &x509.Certificate{Subject: pkix.Name{CommonName: "127.0.0.1"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	sign(t, filepath.Join(dir, "server.crt"), server, authority, key, authorityKey)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "server.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, file string, c, by *x509.Certificate, key, byKey *ecdsa.PrivateKey) {
	t.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter, c.BasicConstraintsValid = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour), true
	der, err := x509.CreateCertificate(rand.Reader, c, by, key.Public(), byKey)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
