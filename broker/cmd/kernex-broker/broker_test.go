package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/config"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/mqttclient"
	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/pkg/tlsfile"
)

// programEnv turns the test binary into the program.
const programEnv = "KERNEX_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		main()
	}
	os.Exit(m.Run())
}

func command(ctx context.Context, t *testing.T, out io.Writer, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), programEnv+"=1")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificate writes a self-signed pair that ends at the given time.
func certificate(t *testing.T, dir, name string, end time.Time) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: serial, NotBefore: end.Add(-48 * time.Hour), NotAfter: end, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert = write(t, filepath.Join(dir, name+".crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o644)
	key = write(t, filepath.Join(dir, name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), 0o600)
	return cert, key
}

func TestBadSettingsAreRefusedByName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := certificate(t, dir, "good", time.Now().Add(time.Hour))
	_, foreign := certificate(t, dir, "foreign", time.Now().Add(time.Hour))
	oldCert, oldKey := certificate(t, dir, "old", time.Now().Add(-time.Hour))
	newCert, newKey := certificate(t, dir, "new", time.Now().Add(72*time.Hour))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() }) // after the subtests
	openKey := filepath.Join(dir, "open.key")
	b, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, openKey, string(b), 0o644)
	secret := write(t, filepath.Join(dir, "secret"), strings.Repeat("x", 40), 0o600)
	base := []string{"--http", "none", "--authorizer", "http://127.0.0.1:1", "--secret-file", secret}
	plain := []string{"--mqtt", "127.0.0.1:0"}
	tls := func(cert, key string) []string {
		return []string{"--mqtts", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key}
	}
	for name, tc := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no listener":             {nil, 2, "give --mqtts ADDR"},
		"plain to the network":    {[]string{"--mqtt", "0.0.0.0:0"}, 2, "--allow-plain"},
		"plain on every address":  {[]string{"--mqtt", ":0"}, 2, "--allow-plain"},
		"port 70000":              {[]string{"--mqtt", "127.0.0.1:70000"}, 2, "up to 65535"},
		"no port":                 {[]string{"--mqtts", "127.0.0.1"}, 2, "HOST:PORT"},
		"port in use":             {[]string{"--mqtt", taken.Addr().String()}, 1, "cannot listen on"},
		"HTTP port in use":        {append(plain, "--http", taken.Addr().String()), 1, "listen for --http"},
		"TLS without certificate": {[]string{"--mqtts", "127.0.0.1:0"}, 2, "needs --tls-cert"},
		"certificate without TLS": {append(plain, "--tls-cert", cert), 2, "are for --mqtts"},
		"certificate missing":     {tls(dir+"/none", key), 1, "no such file"},
		"certificate is none":     {tls(secret, key), 1, "failed to find any PEM data"},
		"key of another":          {tls(cert, foreign), 1, "private key does not match"},
		"key readable by others":  {tls(cert, openKey), 1, "chmod 600"},
		"certificate expired":     {tls(oldCert, oldKey), 1, "has expired at"},
		"certificate of tomorrow": {tls(newCert, newKey), 1, "is not valid before"},
		"no authorizer":           {append(plain, "without", "--authorizer"), 2, "--authorizer is needed"},
		"authorizer is no URL":    {append(plain, "--authorizer", "here"), 2, "http://HOST:PORT"},
		"no secret":               {append(plain, "without", "--secret-file"), 2, "--secret-file is needed"},
		"secret missing":          {append(plain, "--secret-file", dir+"/none"), 1, "no such file"},
		"secret readable":         {append(plain, "--secret-file", openKey), 1, "chmod 600"},
		"authorizer's CA missing": {append(plain, "--authorizer-ca", dir+"/none"), 1, "no such file"},
		"wildcard root":           {append(plain, "--root", "a/+"), 2, "topic root"},
		"negative bound":          {append(plain, "--max-clients=-1"), 2, "--max-clients is -1"},
		"bound that is no number": {append(plain, "--max-clients", "many"), 2, "--max-clients"},
		"log format":              {append(plain, "--log-format", "xml"), 2, "xml"},
		"unknown flag":            {append(plain, "--bogus"), 2, "--bogus"},
		"unknown key in the file": {append(plain, "--config", write(t, filepath.Join(dir, "c.yaml"), "mqqt: x\n", 0o600)), 2, `unknown key "mqqt"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			var out bytes.Buffer
			args, own := slices.Clone(base), tc.args
			if i := slices.Index(own, "without"); i >= 0 {
				at := slices.Index(args, own[i+1])
				args, own = slices.Delete(args, at, at+2), own[:i]
			}
			cmd := command(ctx, t, &out, append(args, own...)...)
			err := cmd.Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != tc.code || !strings.Contains(out.String(), tc.want) {
				t.Errorf("%v, want exit code %d and %q in:\n%s", err, tc.code, tc.want, &out)
			}
		})
	}
}

func TestHelpAndVersionEndWell(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--help"}, {"version"}} {
		var out bytes.Buffer
		if err := command(t.Context(), t, &out, args...).Run(); err != nil || !strings.Contains(out.String(), "kernex-broker") {
			t.Errorf("%v: %v: %s", args, err, &out)
		}
	}
}

// freeAddr is an address that was free a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestTheProgramServesTLSTakesNewCertificatesAndEndsInOrder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := certificate(t, dir, "server", time.Now().Add(time.Hour))
	roots, err := tlsfile.Roots(cert)
	if err != nil {
		t.Fatal(err)
	}
	orchestrator := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/internal/v1/broker/grants" {
			fmt.Fprintf(w, `{"now":%q}`, time.Now().UTC().Format(time.RFC3339Nano))
			return
		}
		fmt.Fprint(w, `{"role":"device","id":"dev-a"}`)
	}))
	t.Cleanup(orchestrator.Close)
	mqtts, mqtt, web := freeAddr(t), freeAddr(t), freeAddr(t)
	settings := write(t, filepath.Join(dir, "broker.yaml"), fmt.Sprintf("mqtt: %s\nmqtts: %s\nhttp: %s\nauthorizer: [%s]\nsecret_file: %s\nlog_format: json\n",
		mqtt, mqtts, web, orchestrator.URL, write(t, filepath.Join(dir, "secret"), strings.Repeat("x", 40), 0o600)), 0o644)
	var out bytes.Buffer
	cmd := command(context.Background(), t, &out, "--config", settings, "--tls-cert", cert, "--tls-key", key)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill() })

	get := func(path string) (int, string) {
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + web + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	testkit.Eventually(t, 20*time.Second, func() error {
		if status, body := get("/readyz"); status != http.StatusOK {
			return fleet.Errorf(fleet.CodeUnavailable, "%d %s", status, body)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, url := range []string{"tcp://" + mqtt, "mqtts://" + mqtts} {
		c, err := mqttclient.Dial(ctx, mqttclient.Options{Broker: url, ClientID: "dev-a", Username: "dev-a", Password: "x", TLS: &tls.Config{RootCAs: roots}})
		if err != nil {
			t.Fatalf("%s: %v", url, err)
		}
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	if status, body := get("/metrics"); status != http.StatusOK || !strings.Contains(body, `kernex_authorizer_logins_total{outcome="granted"} 1`) || !strings.Contains(body, "kernex_broker_clients") {
		t.Errorf("/metrics: %d %s", status, body)
	}
	orchestrator.Close()
	testkit.Eventually(t, 20*time.Second, func() bool {
		status, body := get("/readyz")
		return status == http.StatusServiceUnavailable && strings.Contains(body, "no orchestrator answers")
	})
	if status, _ := get("/livez"); status != http.StatusOK {
		t.Errorf("/livez: %d", status)
	}

	certificate(t, dir, "server", time.Now().Add(2*time.Hour)) // in place
	fresh, err := tlsfile.Roots(cert)
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 2*tlsfile.CheckEvery, func() error {
		c, err := (&tls.Dialer{Config: &tls.Config{RootCAs: fresh}}).DialContext(ctx, "tcp", mqtts)
		if err == nil {
			_ = c.Close()
		}
		return err
	})

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("SIGTERM: %v\n%s", err, &out)
		}
	case <-time.After(15 * time.Second):
		t.Error("SIGTERM does not end the program")
	}
	if config.ExitDone != cmd.ProcessState.ExitCode() {
		t.Errorf("exit code %d", cmd.ProcessState.ExitCode())
	}
}
