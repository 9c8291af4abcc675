package attack

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// device is a registered device with its key in plain sight.
type device struct {
	id     string
	key    crypto.Signer
	method jwt.SigningMethod
}

func newKey(t testing.TB, kind string) (crypto.Signer, jwt.SigningMethod) {
	t.Helper()
	var key crypto.Signer
	var err error
	method := jwt.SigningMethod(jwt.SigningMethodEdDSA)
	switch kind {
	case "rsa":
		method = jwt.SigningMethodRS256
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "ecdsa":
		method = jwt.SigningMethodES256
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key, method
}

func publicPEM(t testing.TB, public any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// register makes a device that may connect.
func (s *system) register(t testing.TB, kind string, labels fleet.Labels) *device {
	t.Helper()
	d := &device{}
	d.key, d.method = newKey(t, kind)
	var made fleet.Device
	s.call(t, http.MethodPost, "/devices", fleet.Registration{PublicKey: publicPEM(t, d.key.Public()), Labels: labels}).into(t, http.StatusCreated, &made)
	d.id = made.ID
	return d
}

// claims are those of a good token.
func (s *system) claims(d *device) jwt.MapClaims {
	now := time.Now()
	return jwt.MapClaims{"sub": d.id, "aud": s.fleet, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix()}
}

// with returns claims with one of them changed; nil takes it away.
func (s *system) with(d *device, name string, v any) jwt.MapClaims {
	c := s.claims(d)
	if c[name] = v; v == nil {
		delete(c, name)
	}
	return c
}

func sign(t testing.TB, method jwt.SigningMethod, c jwt.MapClaims, key any) string {
	t.Helper()
	token, err := jwt.NewWithClaims(method, c).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// token is a good login of the device.
func (s *system) token(t testing.TB, d *device) string {
	t.Helper()
	return sign(t, d.method, s.claims(d), d.key)
}

func (s *system) hello(t testing.TB, d *device) hello {
	t.Helper()
	return hello{id: d.id, username: d.id, password: s.token(t, d)}
}

// birth connects a device, reports its first state and waits for the answer.
func (s *system) birth(t testing.TB, d *device, session int64, boot string) *raw {
	t.Helper()
	c := s.login(t, s.hello(t, d))
	ack := topics.Device(d.id, protocol.KindAck)
	if code := c.subscribe(ack); code >= 0x80 {
		t.Fatalf("SUBACK %#x", code)
	}
	state := looptest.State(session)
	state.Boot = boot
	c.publish(topics.Device(d.id, protocol.KindState), state, 1)
	c.message(ack, func([]byte) bool { return true })
	return c
}
