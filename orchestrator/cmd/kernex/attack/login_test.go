package attack

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/kernexhq/kernex/pkg/protocol"
)

// The codes of CONNACK that refuse.
const (
	badClientID  = 2
	unauthorized = 5
	qosRefused   = 0x9b // MQTT 5's; 3.1.1 has none for it
)

const nonce = "0123456789abcdef0123456789abcdef"

// logins are CONNECT packets that nobody may get in with.
func (x *target) logins(t *testing.T) []attack {
	v := x.victim
	der, err := x509.MarshalPKIXPublicKey(x.rsa.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	edDER, err := x509.MarshalPKIXPublicKey(v.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	otherRSA, _ := newKey(t, "rsa")
	good := x.token(t, v)
	part := strings.Split(good, ".")
	flipped := []byte(good)
	flipped[len(flipped)-5] ^= 1
	critical := jwt.NewWithClaims(v.method, x.claims(v))
	critical.Header["crit"] = []string{"exp"}
	crit, err := critical.SignedString(v.key)
	if err != nil {
		t.Fatal(err)
	}
	as := func(d *device, password string) hello { return hello{id: d.id, username: d.id, password: password} }
	will := func(topic, payload string, flags byte) hello {
		h := as(x.mallory, x.token(t, x.mallory))
		h.willTopic, h.will, h.willFlags = topic, payload, flags
		return h
	}
	own := topics.Device(x.mallory.id, protocol.KindPresence)
	monitor, service := x.tokens["monitor"], x.tokens["service"]
	var list []attack
	for name, c := range map[string]struct {
		hello hello
		code  byte
	}{
		"no password":                           {as(v, ""), unauthorized},
		"a guess":                               {as(v, "guess"), unauthorized},
		"JWT with alg none":                     {as(v, sign(t, jwt.SigningMethodNone, x.claims(v), jwt.UnsafeAllowNoneSignatureType)), unauthorized},
		"JWT without its signature":             {as(v, part[0]+"."+part[1]+"."), unauthorized},
		"HS256 with the RSA public key":         {as(x.rsa, sign(t, jwt.SigningMethodHS256, x.claims(x.rsa), []byte(publicPEM(t, x.rsa.key.Public())))), unauthorized},
		"HS256 with the RSA public key's DER":   {as(x.rsa, sign(t, jwt.SigningMethodHS256, x.claims(x.rsa), der)), unauthorized},
		"HS256 with the Ed25519 public key":     {as(v, sign(t, jwt.SigningMethodHS256, x.claims(v), edDER)), unauthorized},
		"RS256 by another key on an Ed25519 id": {as(v, sign(t, jwt.SigningMethodRS256, x.claims(v), otherRSA)), unauthorized},
		"PS256 on an RSA key":                   {as(x.rsa, sign(t, jwt.SigningMethodPS256, x.claims(x.rsa), x.rsa.key)), unauthorized},
		"RS512 on an RSA key":                   {as(x.rsa, sign(t, jwt.SigningMethodRS512, x.claims(x.rsa), x.rsa.key)), unauthorized},
		"signed by another device":              {as(v, sign(t, x.mallory.method, x.claims(v), x.mallory.key)), unauthorized},
		"another device's token":                {as(v, x.token(t, x.mallory)), unauthorized},
		"sub of another device":                 {as(x.mallory, sign(t, x.mallory.method, x.claims(v), x.mallory.key)), unauthorized},
		"no sub":                                {as(v, sign(t, v.method, x.with(v, "sub", nil), v.key)), unauthorized},
		"aud of another fleet":                  {as(v, sign(t, v.method, x.with(v, "aud", "fleet-other"), v.key)), unauthorized},
		"two audiences":                         {as(v, sign(t, v.method, x.with(v, "aud", []string{x.fleet, "fleet-other"}), v.key)), unauthorized},
		"no aud":                                {as(v, sign(t, v.method, x.with(v, "aud", nil), v.key)), unauthorized},
		"expired":                               {as(v, sign(t, v.method, x.with(v, "exp", at(-11*time.Minute)), v.key)), unauthorized},
		"no exp":                                {as(v, sign(t, v.method, x.with(v, "exp", nil), v.key)), unauthorized},
		"exp in two days":                       {as(v, sign(t, v.method, x.with(v, "exp", at(48*time.Hour)), v.key)), unauthorized},
		"no iat":                                {as(v, sign(t, v.method, x.with(v, "iat", nil), v.key)), unauthorized},
		"iat in an hour":                        {as(v, sign(t, v.method, x.with(v, "iat", at(time.Hour)), v.key)), unauthorized},
		"nbf in an hour":                        {as(v, sign(t, v.method, x.with(v, "nbf", at(time.Hour)), v.key)), unauthorized},
		"a critical extension":                  {as(v, crit), unauthorized},
		"a bit of the signature flipped":        {as(v, string(flipped)), unauthorized},
		"a token and more":                      {as(v, good+"."+part[2]), unauthorized},
		"a token of 5 KiB":                      {as(v, sign(t, v.method, x.with(v, "pad", strings.Repeat("x", 4000)), v.key)), unauthorized},
		"a revoked device":                      {as(x.revoked, x.token(t, x.revoked)), unauthorized},
		"a deleted device":                      {as(x.deleted, x.token(t, x.deleted)), unauthorized},
		"an unknown device":                     {hello{id: "nobody", username: "nobody", password: good}, unauthorized},
		"a device with the admin's token":       {as(v, x.admin), unauthorized},
		"a device with a service token":         {as(v, service), unauthorized},
		"a foreign client id":                   {hello{id: v.id, username: x.mallory.id, password: x.token(t, x.mallory)}, badClientID},
		"a foreign client id, upper case":       {hello{id: strings.ToUpper(x.mallory.id), username: x.mallory.id, password: x.token(t, x.mallory)}, badClientID},
		"an empty client id":                    {hello{username: x.mallory.id, password: x.token(t, x.mallory)}, badClientID},
		"client id inline":                      {hello{id: "inline", username: "service", password: service}, badClientID},
		"client id #":                           {hello{id: "#", username: "#", password: good}, badClientID},
		"client id +":                           {hello{id: "+", username: "+", password: good}, badClientID},
		"client id with a slash":                {hello{id: v.id + "/x", username: v.id + "/x", password: good}, badClientID},
		"client id of a service session":        {hello{id: "service/x", username: "service/x", password: good}, badClientID},
		"SQL in the user name":                  {hello{id: "' OR 1=1 --", username: "' OR 1=1 --", password: good}, badClientID},
		"no user name":                          {hello{id: v.id, password: good}, badClientID},
		"service with a device's JWT":           {hello{id: "x", username: "service", password: x.token(t, x.mallory)}, unauthorized},
		"service with the admin's token":        {hello{id: "x", username: "service", password: x.admin}, unauthorized},
		"service with a monitor token":          {hello{id: "x", username: "service", password: monitor}, unauthorized},
		"monitor with a viewer token":           {hello{id: "x", username: "monitor", password: x.tokens["viewer"]}, unauthorized},
		"monitor with a service token":          {hello{id: "x", username: "monitor", password: service}, unauthorized},
		"monitor with a revoked token":          {hello{id: "x", username: "monitor", password: x.tokens["revoked"]}, unauthorized},
		"monitor with an expired token":         {hello{id: "x", username: "monitor", password: x.tokens["expired"]}, unauthorized},
		"monitor with a claim token":            {hello{id: "x", username: "monitor", password: x.claimTokens["good"]}, unauthorized},
		"enroll without a nonce":                {hello{id: v.id, username: "enroll"}, badClientID},
		"enroll with a short nonce":             {hello{id: nonce[1:], username: "enroll"}, badClientID},
		"clock under a device's name":           {hello{id: v.id, username: "clock"}, badClientID},
		"a will on another's command":           {will(topics.Device(v.id, protocol.KindCommand), "{}", 0), unauthorized},
		"a will on another's presence":          {will(topics.Device(v.id, protocol.KindPresence), `{"online":false,"session":9}`, 0), unauthorized},
		"a will on its own state":               {will(topics.Device(x.mallory.id, protocol.KindState), "{}", 0), unauthorized},
		"a will on its own ack":                 {will(topics.Device(x.mallory.id, protocol.KindAck), "{}", 0), unauthorized},
		"a will on a kick":                      {will(topics.Kick(v.id), "{}", 0), unauthorized},
		"a retained will":                       {will(own, "{}", 1<<5), unauthorized},
		"a will of QoS 2":                       {will(own, "{}", 1<<4|1<<3), qosRefused},
		"a will above 1 KiB":                    {will(own, padded(2<<10), 0), unauthorized},
		"a monitor's will":                      {hello{id: "x", username: "monitor", password: monitor, willTopic: topics.FleetSummary(), will: "{}"}, unauthorized},
		"an enrolment's will":                   {hello{id: nonce, username: "enroll", willTopic: topics.EnrollRequest(nonce), will: "{}"}, unauthorized},
		"a service's will":                      {hello{id: "x", username: "service", password: service, willTopic: topics.Device(v.id, protocol.KindCommand), will: "{}"}, unauthorized},
	} {
		counted := []string{"credential"}
		switch {
		case c.code == badClientID:
			counted = []string{"client_id"}
		case c.code == qosRefused:
			counted = nil // by mochi itself
		case c.hello.willTopic != "":
			counted = []string{"will"}
		}
		list = append(list, attack{name: name, run: func(t *testing.T) {
			line := x.dial(t)
			if code := line.connect(c.hello); code != c.code {
				t.Errorf("CONNACK %d, want %d", code, c.code)
			}
			line.closed()
		}, counted: counted})
	}
	return list
}
