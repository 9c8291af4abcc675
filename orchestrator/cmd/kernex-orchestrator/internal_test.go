package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/httpauth"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestOnlyBrokersWithTheSecretAreAnswered(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r := s.replica()
	s.serveBroker(r)
	good := "Bearer " + s.secret("shared.secret")
	for name, tc := range map[string]struct {
		method, addr, path, auth, body string
		status                         int
	}{
		"no secret":              {"POST", r.internal, "/internal/v1/broker/auth", "", `{}`, 401},
		"another secret":         {"POST", r.internal, "/internal/v1/broker/auth", good + "x", `{}`, 401},
		"an admin's token":       {"GET", r.internal, "/internal/v1/broker/grants", "Bearer " + s.secret("admin.token"), ``, 401},
		"no JSON":                {"POST", r.internal, "/internal/v1/broker/auth", good, `x`, 400},
		"keys twice":             {"POST", r.internal, "/internal/v1/broker/auth", good, `{"username":"a","username":"b"}`, 400},
		"too long":               {"POST", r.internal, "/internal/v1/broker/auth", good, `{"username":"` + strings.Repeat("a", 20<<10) + `"}`, 413},
		"a refused login":        {"POST", r.internal, "/internal/v1/broker/auth", good, `{"username":"nobody","client_id":"nobody"}`, 403},
		"no time":                {"GET", r.internal, "/internal/v1/broker/grants?since=yesterday", good, ``, 400},
		"all grants":             {"GET", r.internal, "/internal/v1/broker/grants", good, ``, 200},
		"another method":         {"GET", r.internal, "/internal/v1/broker/auth", good, ``, 405},
		"the API is not there":   {"GET", r.internal, "/api/v1/devices", good, ``, 404},
		"metrics are not there":  {"GET", r.internal, "/metrics", good, ``, 404},
		"not on the admin's":     {"POST", r.http, "/internal/v1/broker/auth", good, `{}`, 404},
		"nor the changed grants": {"GET", r.http, "/internal/v1/broker/grants", good, ``, 404},
	} {
		req, err := http.NewRequestWithContext(t.Context(), tc.method, "http://"+tc.addr+tc.path, strings.NewReader(tc.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", tc.auth)
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != tc.status {
			t.Errorf("%s: %d, want %d: %s, %v", name, resp.StatusCode, tc.status, body, err)
		}
	}
}

func TestBrokerAndReplicaTalkOverTLS(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	web := httptest.NewTLSServer(nil) // for its certificate
	pair := web.TLS.Certificates[0]
	web.Close()
	pkcs8, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	s.write("tls.crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})))
	s.write("tls.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})))
	roots := x509.NewCertPool()
	roots.AddCert(web.Certificate())
	secure, err := broker.New(broker.Config{Addr: "127.0.0.1:0", TLS: &tls.Config{Certificates: []tls.Certificate{pair}}, MaxClients: 512, Logger: testkit.Logger(t).Level(zerolog.WarnLevel)})
	if err != nil {
		t.Fatal(err)
	}
	plain := s.broker
	s.broker = secure
	r := s.replica("--broker", "mqtts://"+secure.Addr().String(), "--broker-ca", s.path("tls.crt"), "--internal-cert", s.path("tls.crt"), "--internal-key", s.path("tls.key"))
	s.serve(httpauth.Config{URLs: []string{"https://" + r.internal}, Secret: s.secret("shared.secret"), TLS: &tls.Config{RootCAs: roots}, Log: testkit.Logger(t)})
	r.awaitReady(http.StatusOK)
	testkit.Eventually(t, 30*time.Second, func() error {
		if n := secure.Connected(); n != 8 {
			return fleet.Errorf(fleet.CodeUnavailable, "%d connections", n)
		}
		return nil
	})
	s.discard(plain)
}
