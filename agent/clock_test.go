package agent_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

const years = 20 * 365 * 24 * time.Hour

// tell publishes the server's time, as the orchestrator does.
func (o *orchestrator) tell() {
	o.t.Helper()
	now, err := json.Marshal(protocol.Time{Time: time.Now().Unix()})
	if err == nil {
		err = o.broker.Publish(o.t.Context(), o.topics.Time(), now, 0, true)
	}
	if err != nil {
		o.t.Fatal(err)
	}
}

func TestAClockThatIsTwentyYearsOffChangesNoDecisionButExpiry(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		first, second time.Duration // the clock's error at the start and from the middle of a deployment on
		expired       bool          // whether a command of an hour has expired
	}{
		"far ahead":      {years, years, true},
		"far behind":     {-years, -years, false},
		"jumps ahead":    {0, years, true},
		"jumps back":     {years, -years, false},
		"is set at last": {-years, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOrchestrator(t)
			o.tell()
			clock := testkit.NewClock(time.Now().Add(tc.first))
			cfg := config(o, t.TempDir())
			cfg.Clock = clock.Now
			d := start(o, cfg)
			o.await("the first state report", func() bool { return len(o.states) > 0 })
			deploy := func(ref protocol.BundleRef) protocol.Command {
				c := o.deploy(d.DeviceID(), ref)
				c.NotAfter = time.Now().Add(2 * years).Unix()
				o.send(c, o.key)
				return c
			}
			c := deploy(o.pack("1.0.0", manifest, with(good(), "deploy.sh", "#!/bin/sh\nwhile [ ! -e $KERNEX_STATE_DIR/go ]; do sleep 0.02; done\n")))
			o.await("the deploy script", func() bool { return len(o.results) > 0 && o.results[len(o.results)-1].State == fleet.TargetInstalling })
			clock.Set(time.Now().Add(tc.second))
			if err := os.WriteFile(filepath.Join(d.dir, "state", "go"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if r := o.final(c.ID); r.State != fleet.TargetSucceeded || r.DurationMS <= 0 || r.DurationMS > 60_000 {
				t.Errorf("%+v %+v", r, r.Error)
			}
			o.edit(func() { o.states = nil })
			o.broker.Kick(d.DeviceID()) // the next token is right too
			o.await("the next session", func() bool { return len(o.states) > 0 && o.states[0].BundleVersion == "1.0.0" })
			d.stop()
			o.edit(func() { o.states = nil })
			d = start(o, cfg) // which knows no more than the first
			o.await("the session after a restart", func() bool { return len(o.states) > 0 })
			c = deploy(o.pack("2.0.0", manifest, good()))
			if r := o.final(c.ID); r.State != fleet.TargetSucceeded || d.current(t) != c.Deploy.Bundle.Release {
				t.Errorf("%+v %+v", r, r.Error)
			}
			soon := o.command(d.DeviceID(), protocol.CommandConfigure)
			soon.Configure = &protocol.Configure{Config: fleet.DefaultConfig()}
			o.send(soon, o.key)
			if r := o.final(soon.ID); (r.State == fleet.TargetRejected) != tc.expired || tc.expired && r.Error.Code != fleet.CodeExpired {
				t.Errorf("a command of an hour: %+v %+v", r, r.Error)
			}
			past := o.command(d.DeviceID(), protocol.CommandConfigure) // by what signed commands have said
			past.Configure = &protocol.Configure{Config: fleet.DefaultConfig()}
			past.NotAfter = time.Now().Add(-time.Hour).Unix()
			o.send(past, o.key)
			if r := o.final(past.ID); r.State != fleet.TargetRejected || r.Error.Code != fleet.CodeExpired {
				t.Errorf("a command of an hour ago: %+v %+v", r, r.Error)
			}
		})
	}
}

func TestOnlyTimeInASignedCommandMakesCertificatesValid(t *testing.T) {
	t.Parallel()
	o := newOrchestrator(t)
	o.tell()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	young := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, young, young, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(o.archives.Config.Handler)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.StartTLS()
	defer s.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: der}
	if err := os.WriteFile(ca, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config(o, t.TempDir())
	cfg.CA = ca
	cfg.Clock = testkit.NewClock(time.Unix(0, 0)).Now // before the certificate; the server's time alone must not help
	d := start(o, cfg)
	o.await("the first state report", func() bool { return len(o.states) > 0 })
	ref := o.pack("1.0.0", manifest, good())
	ref.URL = s.URL + "/" + ref.Checksum
	c := o.deploy(d.DeviceID(), ref)
	c.IssuedAt, c.Deploy.StepTimeoutS = 1, 30
	o.send(c, o.key)
	o.await("the download to begin", func() bool { return len(o.results) > 0 && o.results[len(o.results)-1].State == fleet.TargetDownloading })
	mark := o.command(d.DeviceID(), protocol.CommandCancel) // issued now: from here on it is not 1970
	mark.Cancel = &protocol.Cancel{Command: "another"}
	o.edit(func() {
		if o.served != 0 {
			t.Error("downloaded by a certificate that is not valid yet")
		}
	})
	o.send(mark, o.key)
	if r := o.final(c.ID); r.State != fleet.TargetSucceeded {
		t.Errorf("%+v %+v", r, r.Error)
	}
}
