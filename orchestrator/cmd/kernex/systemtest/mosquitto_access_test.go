package systemtest

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/mqttclient"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
	"github.com/kernexhq/kernex/pkg/tlsfile"
)

// ear collects what a client receives, as "topic payload".
type ear struct {
	mu  sync.Mutex
	all []string
}

func (e *ear) hear(topic string, payload []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.all = append(e.all, topic+" "+string(payload))
}

// has reports whether something with these words was received.
func (e *ear) has(words string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.all {
		if strings.Contains(m, words) {
			return true
		}
	}
	return false
}

// wait waits for something with these words.
func (e *ear) wait(t testing.TB, words string) {
	t.Helper()
	testkit.Eventually(t, patience, func() error {
		if !e.has(words) {
			return fmt.Errorf("%q was not received", words)
		}
		return nil
	})
}

// dial connects to one of Mosquitto's listeners.
func (e *external) dial(url string, cert *tls.Certificate, change func(*mqttclient.Options)) (*mqttclient.Client, *ear, error) {
	roots, err := tlsfile.Roots(e.roots)
	if err != nil {
		e.t.Fatal(err)
	}
	in := new(ear)
	o := mqttclient.Options{Broker: url, TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots}, ClientID: rand.Text(), OnMessage: in.hear}
	if cert != nil {
		o.TLS.Certificates = []tls.Certificate{*cert}
	}
	if change != nil {
		change(&o)
	}
	c, err := mqttclient.Dial(e.t.Context(), o)
	if err != nil {
		return nil, nil, err
	}
	e.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.Close(ctx) // it may have ended
	})
	return c, in, nil
}

// join is dial for those who get in.
func (e *external) join(url string, cert *tls.Certificate, change func(*mqttclient.Options)) (*mqttclient.Client, *ear) {
	e.t.Helper()
	c, in, err := e.dial(url, cert, change)
	if err != nil {
		e.t.Fatal(err)
	}
	return c, in
}

// asService connects as an orchestrator does.
func (e *external) asService() (*mqttclient.Client, *ear) {
	e.t.Helper()
	return e.join(e.service, nil, func(o *mqttclient.Options) { o.Username, o.Password = "service", e.secret })
}

// stolen returns the certificate and key of a device that has stopped.
func stolen(t testing.TB, dir string) *tls.Certificate {
	t.Helper()
	var file [2][]byte
	for i, name := range []string{"key.pem", "cert.pem"} {
		b, err := os.ReadFile(filepath.Join(dir, "identity", name))
		if err != nil {
			t.Fatal(err)
		}
		file[i] = b
	}
	key, err := identity.ParsePrivateKeyPEM(file[0])
	if err != nil {
		t.Fatal(err)
	}
	cert, err := key.Certificate(file[1])
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func publish(t testing.TB, c *mqttclient.Client, topic, payload string) {
	t.Helper()
	if err := c.Publish(t.Context(), topic, []byte(payload), 1, false); err != nil {
		t.Fatal(err)
	}
}

func subscribe(t testing.TB, c *mqttclient.Client, filters ...string) {
	t.Helper()
	for _, f := range filters {
		if err := c.Subscribe(t.Context(), f, 1); err != nil && !errors.Is(err, mqttclient.ErrRefusedFilter) {
			t.Fatal(err)
		}
	}
}

const forged = `{"forged":true}`

// TestMosquittoKeepsDevicesApart attacks one device with the keys of another.
// Mosquitto's access lists say nothing when they refuse: what counts is what
// arrives.
func TestMosquittoKeepsDevicesApart(t *testing.T) {
	t.Parallel()
	e := startExternal(t)
	agents := e.fleet(2)
	victim, thief := agents[0].id(), agents[1].id()
	agents[1].stop(syscall.SIGTERM)
	cert := stolen(t, agents[1].dir)
	topics := protocol.NewTopics("")
	watch, heard := e.asService()
	subscribe(t, watch, "kernex/v1/#")

	t.Log("what it publishes")
	c, own := e.join(e.devices, cert, func(o *mqttclient.Options) { o.ClientID, o.Username = victim, victim }) // Mosquitto takes neither
	for _, topic := range []string{
		topics.Device(victim, protocol.KindHeartbeat), topics.Device(victim, protocol.KindState), topics.Device(victim, protocol.KindResult),
		topics.Device(victim, protocol.KindPresence), topics.Device(victim, protocol.KindCommand), topics.Device(thief, protocol.KindCommand),
		topics.Device(thief, protocol.KindAck), topics.FleetSummary(), topics.Time(), topics.Kick(victim), topics.EnrollRequest(nonce()),
	} {
		publish(t, c, topic, forged)
	}
	publish(t, c, topics.Device(thief, protocol.KindLog), `{"lines":[]}`)
	heard.wait(t, thief+"/log ")
	if heard.has("forged") {
		t.Errorf("a forged message arrived: %q", heard.all)
	}

	t.Log("what it hears")
	subscribe(t, c, topics.Device(victim, protocol.KindCommand), topics.Device(victim, protocol.KindAck), "kernex/v1/#", "#", "$share/x/kernex/v1/#", topics.Device(thief, protocol.KindCommand))
	publish(t, watch, topics.Device(victim, protocol.KindCommand), "not-a-command")
	publish(t, watch, topics.FleetSummary(), "not-a-summary")
	publish(t, watch, topics.Device(thief, protocol.KindCommand), "its own")
	own.wait(t, thief+"/command its own")
	own.mu.Lock()
	for _, m := range own.all {
		if !strings.HasPrefix(m, topics.Device(thief, protocol.KindCommand)+" ") && !strings.HasPrefix(m, topics.Device(thief, protocol.KindAck)+" ") {
			t.Errorf("the thief heard %q", m)
		}
	}
	own.mu.Unlock()

	t.Log("what its wills do")
	for _, id := range []string{victim, thief} { // each new connection ends the one before, whose will is sent
		e.join(e.devices, cert, func(o *mqttclient.Options) {
			o.WillTopic, o.WillPayload, o.WillQoS = topics.Device(id, protocol.KindPresence), []byte(`{"will":"of the thief"}`), 1
		})
	}
	e.join(e.devices, cert, nil)
	heard.wait(t, thief+`/presence {"will"`)
	if heard.has(victim + `/presence {"will"`) {
		t.Error("a will went to another device's presence")
	}

	t.Log("the victim is still there and hears")
	d, err := e.api.Device(t.Context(), victim)
	if err != nil || d.Status != "online" {
		t.Errorf("the victim is %s, %v", d.Status, err)
	}
	e.must("device", "config", "set", victim, "--heartbeat-interval", "5")
	testkit.Eventually(t, patience, func() error {
		d, err := e.api.Device(context.Background(), victim)
		if err == nil && d.ConfigReported != d.ConfigVersion {
			err = fmt.Errorf("config %d, reported %d", d.ConfigVersion, d.ConfigReported)
		}
		return err
	})
}

// TestNobodyTakesMessagesOutOfTheOrchestratorsShare joins the groups that a
// device can think of: Mosquitto lets everyone subscribe and then does not
// deliver, so a member that may not read would swallow its share.
func TestNobodyTakesMessagesOutOfTheOrchestratorsShare(t *testing.T) {
	t.Parallel()
	e := startExternal(t)
	agents := e.fleet(2)
	agents[1].stop(syscall.SIGTERM)
	c, _ := e.join(e.devices, stolen(t, agents[1].dir), nil)
	n, _ := e.join(e.enroll, nil, nil)
	for _, kind := range []protocol.Kind{protocol.KindHeartbeat, protocol.KindState, protocol.KindResult, protocol.KindRequest} {
		subscribe(t, c, "$share/kernex/"+protocol.NewTopics("").Device("+", kind))
		subscribe(t, n, "$share/kernex/"+protocol.NewTopics("").Device("+", kind))
	}
	s, _ := e.dialDevice(agents[0])
	// Eight connections and two thieves: of ten in a row two would be missing.
	topics := protocol.NewTopics("")
	for i := range 10 {
		b, err := json.Marshal(protocol.State{Session: int64(1000 + i), Boot: "b", Status: "healthy", AgentVersion: "0", OS: "x", Arch: "x"})
		if err != nil {
			t.Fatal(err)
		}
		publish(t, s.Client, topics.Device(agents[0].id(), protocol.KindState), string(b))
	}
	testkit.Eventually(t, patience, func() error {
		if n := s.count("/ack "); n < 10 {
			return fmt.Errorf("%d of 10 state reports were acknowledged", n)
		}
		return nil
	})
}

// taken is a client with the identity of an agent that was stopped for it.
type taken struct {
	*mqttclient.Client
	*ear
}

func (e *external) dialDevice(a *agent) (taken, string) {
	e.t.Helper()
	id := a.id()
	a.stop(syscall.SIGTERM)
	c, in := e.join(e.devices, stolen(e.t, a.dir), nil)
	subscribe(e.t, c, protocol.NewTopics("").Device(id, protocol.KindAck))
	return taken{c, in}, id
}

func (e *ear) count(words string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, m := range e.all {
		if strings.Contains(m, words) {
			n++
		}
	}
	return n
}

// TestMosquittoRefusesWhoHasNoCertificate tries the doors.
func TestMosquittoRefusesWhoHasNoCertificate(t *testing.T) {
	t.Parallel()
	e := startExternal(t)
	agents := e.fleet(1)
	id := agents[0].id()
	agents[0].stop(syscall.SIGTERM)
	topics := protocol.NewTopics("")
	good := stolen(t, agents[0].dir)

	if _, _, err := e.dial(e.devices, nil, nil); err == nil {
		t.Error("the device listener takes a client without certificate")
	}
	// A certificate of the same name by a CA of the same name.
	key, foreignKey := newKey(t), newKey(t)
	self := filepath.Join(t.TempDir(), "self.pem")
	foreign := &x509.Certificate{RawSubject: good.Leaf.RawIssuer, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	sign(t, filepath.Join(t.TempDir(), "foreign.pem"), foreign, foreign, foreignKey, foreignKey)
	sign(t, self, &x509.Certificate{Subject: good.Leaf.Subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, foreign, key, foreignKey)
	forgery, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.dial(e.devices, &tls.Certificate{Certificate: [][]byte{block(t, forgery)}, PrivateKey: key}, nil); err == nil {
		t.Error("the device listener takes a certificate that another CA has made")
	}
	for _, login := range [][2]string{{"service", "wrong"}, {"", ""}, {id, e.secret}} {
		if _, _, err := e.dial(e.service, nil, func(o *mqttclient.Options) { o.Username, o.Password = login[0], login[1] }); err == nil {
			t.Errorf("the listener of services takes %q", login)
		}
	}

	t.Log("one enrolment cannot read or write another's, nor a device's topics")
	watch, heard := e.asService()
	subscribe(t, watch, "kernex/v1/#")
	mine, other := nonce(), nonce()
	n, in := e.join(e.enroll, nil, func(o *mqttclient.Options) { o.ClientID, o.Username = mine, "service" }) // a name that counts on another listener only
	subscribe(t, n, topics.EnrollReply(other), "kernex/v1/#", "#", topics.EnrollReply(mine))
	for _, topic := range []string{topics.EnrollRequest(other), topics.EnrollReply(mine), topics.Device(id, protocol.KindState), topics.Device(mine, protocol.KindState)} {
		publish(t, n, topic, forged)
	}
	publish(t, n, topics.EnrollRequest(mine), "{}")
	heard.wait(t, mine+"/request {}")
	if heard.has("forged") {
		t.Errorf("a forged message arrived: %q", heard.all)
	}
	publish(t, watch, topics.EnrollReply(other), "secret")
	publish(t, watch, topics.Device(id, protocol.KindCommand), "secret")
	publish(t, watch, topics.EnrollReply(mine), "last")
	in.wait(t, "last")
	if in.has("secret") {
		t.Errorf("an enrolment read %q", in.all)
	}

	t.Log("a monitor reads the fleet and nothing else")
	m, seen := e.join(e.service, nil, func(o *mqttclient.Options) { o.Username, o.Password = "monitor", "watch" })
	subscribe(t, m, "kernex/v1/#", topics.FleetFilter())
	publish(t, m, topics.FleetSummary(), forged)
	publish(t, watch, topics.Device(id, protocol.KindCommand), "secret")
	publish(t, watch, topics.FleetEvents(), "event")
	seen.wait(t, "event")
	if seen.has("secret") || heard.has("forged") {
		t.Errorf("a monitor read %q; %q", seen.all, heard.all)
	}

	t.Log("a revoked device stays out, once Mosquitto has the list")
	c, _ := e.join(e.devices, good, nil)
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := e.api.Revoke(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, func() error {
		e.write("devices.crl", e.get("/pki/devices.crl"))
		if err := e.broker.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			return err
		}
		if _, _, err := e.dial(e.devices, good, nil); err == nil {
			return errors.New("Mosquitto takes the certificate of a revoked device")
		}
		return nil
	})
}

func nonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
