package agent_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/broker/brokertest"
	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/schema"
)

const (
	fleetName  = "test-fleet"
	claimToken = "claim"
)

// orchestrator is the device protocol's other side, kept in memory: it enrols,
// acknowledges, signs commands and remembers everything it was told.
type orchestrator struct {
	t        *testing.T
	broker   *brokertest.Server
	topics   protocol.Topics
	key      ed25519.PrivateKey
	archives *httptest.Server

	mu        sync.Mutex
	changed   chan struct{} // closed and replaced whenever something is noted
	devices   map[string]identity.PublicKey
	byKey     map[string]string
	certify   func(id string, key identity.PublicKey) string // PEM; nil: no certificates
	pending   bool                                           // devices enrol as pending
	mute      bool                                           // acknowledge no result
	enrolled  int                                            // finished enrolments
	beats     []protocol.Heartbeat
	states    []protocol.State
	results   []protocol.Result
	requests  []protocol.Request
	presences []protocol.Presence
	logs      []protocol.Log
	files     map[string][]byte
	serve     http.HandlerFunc // replaces the files, if set
	served    int              // archive requests
	seq       int64
	errors    []string
}

var schemas = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	c := jsonschema.NewCompiler()
	out := map[string]*jsonschema.Schema{}
	names, err := schema.Messages.ReadDir("messages")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		data, err := schema.Messages.ReadFile("messages/" + n.Name())
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		if err := c.AddResource(n.Name(), doc); err != nil {
			return nil, err
		}
	}
	for _, n := range names {
		s, err := c.Compile(n.Name())
		if err != nil {
			return nil, err
		}
		out[strings.TrimSuffix(n.Name(), ".json")] = s
	}
	return out, nil
})

func newOrchestrator(t *testing.T) *orchestrator {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	o := &orchestrator{t: t, topics: protocol.NewTopics(""), key: key, changed: make(chan struct{}),
		devices: map[string]identity.PublicKey{}, byKey: map[string]string{}, files: map[string][]byte{}}
	o.archives = httptest.NewServer(http.HandlerFunc(o.archive))
	t.Cleanup(o.archives.Close)
	o.broker = brokertest.Start(t, o, o)
	t.Cleanup(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, e := range o.errors {
			t.Error(e)
		}
	})
	return o
}

func (o *orchestrator) archive(w http.ResponseWriter, r *http.Request) {
	o.mu.Lock()
	o.served++
	data, serve := o.files[strings.TrimPrefix(r.URL.Path, "/")], o.serve
	o.mu.Unlock()
	if serve != nil {
		serve(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// Authorize implements broker.Authorizer.
func (o *orchestrator) Authorize(_ context.Context, l broker.Login) (broker.Grant, error) {
	o.mu.Lock()
	key, pending := o.devices[l.Username], o.pending
	o.mu.Unlock()
	if err := identity.VerifyDeviceToken(string(l.Password), key, l.Username, fleetName, time.Now()); err != nil {
		return broker.Grant{}, fleet.Wrap(fleet.CodeUnauthorized, err, "bad token")
	}
	return broker.Grant{Role: broker.RoleDevice, ID: l.Username, Restricted: pending}, nil
}

// Receive implements broker.Ingest.
func (o *orchestrator) Receive(topic string, payload []byte) {
	kind, id, ok := o.topics.Parse(topic)
	if !ok {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.validate(kind, payload)
	switch kind {
	case protocol.KindEnrollRequest:
		var m protocol.EnrollRequest
		o.decode(kind, payload, &m)
		o.publish(o.topics.EnrollReply(id), o.enroll(id, m))
	case protocol.KindHeartbeat:
		var m protocol.Heartbeat
		o.decode(kind, payload, &m)
		o.beats = append(o.beats, m)
	case protocol.KindState:
		var m protocol.State
		o.decode(kind, payload, &m)
		o.states = append(o.states, m)
		o.publish(o.topics.Device(id, protocol.KindAck), protocol.Ack{Time: time.Now().Unix()})
	case protocol.KindResult:
		var m protocol.Result
		o.decode(kind, payload, &m)
		o.results = append(o.results, m)
		if m.State.Final() && !o.mute {
			o.publish(o.topics.Device(id, protocol.KindAck), protocol.Ack{Time: time.Now().Unix(),
				Results: []protocol.ResultAck{{Command: m.Command, State: m.State, Accepted: true}}})
		}
	case protocol.KindRequest:
		var m protocol.Request
		o.decode(kind, payload, &m)
		o.requests = append(o.requests, m)
		if m.Want == protocol.WantCertificate && o.certify != nil {
			o.publish(o.topics.Device(id, protocol.KindAck), protocol.Ack{Time: time.Now().Unix(), Certificate: o.certify(id, o.devices[id])})
		}
	case protocol.KindLog:
		var m protocol.Log
		o.decode(kind, payload, &m)
		o.logs = append(o.logs, m)
	case protocol.KindPresence:
		var m protocol.Presence
		o.decode(kind, payload, &m)
		o.presences = append(o.presences, m)
	}
	close(o.changed)
	o.changed = make(chan struct{})
}

// validate checks a message against its published schema and its own rules.
func (o *orchestrator) validate(kind protocol.Kind, payload []byte) {
	all, err := schemas()
	if err != nil {
		o.errors = append(o.errors, err.Error())
		return
	}
	s := all[strings.ReplaceAll(string(kind), "/", "-")]
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(payload))
	if err == nil && s != nil {
		err = s.Validate(doc)
	}
	if err != nil || s == nil {
		o.errors = append(o.errors, fmt.Sprintf("%s: schema %v: %v\n%s", kind, s != nil, err, payload))
	}
}

func (o *orchestrator) decode(kind protocol.Kind, payload []byte, v any) {
	err := protocol.Decode(kind, payload, v)
	if c, ok := v.(interface{ Validate() error }); ok && err == nil {
		err = c.Validate()
	}
	if err != nil {
		o.errors = append(o.errors, fmt.Sprintf("%s: %v\n%s", kind, err, payload))
	}
}

func (o *orchestrator) enroll(nonce string, m protocol.EnrollRequest) protocol.EnrollReply {
	refuse := func(code fleet.Code, text string) protocol.EnrollReply {
		return protocol.EnrollReply{Time: time.Now().Unix(), Error: &protocol.ErrorDetail{Code: code, Message: text}}
	}
	if m.Challenge == "" {
		return protocol.EnrollReply{Challenge: "challenge-of-" + nonce, Time: time.Now().Unix()}
	}
	key, err := identity.ParsePublicKeyPEM([]byte(m.PublicKey))
	if err != nil {
		return refuse(fleet.CodeInvalid, err.Error())
	}
	sig, _ := base64.RawURLEncoding.DecodeString(m.Signature)
	if err := identity.VerifyEnroll(key, m.Challenge, nonce, sig); err != nil {
		return refuse(fleet.CodeBadSignature, err.Error())
	}
	if m.Token != claimToken && m.RegistrationToken == "" && !o.pending {
		return refuse(fleet.CodeForbidden, "the claim token is wrong")
	}
	id, ok := o.byKey[key.Hash()]
	if !ok {
		id = fleet.NewDeviceID()
		o.byKey[key.Hash()], o.devices[id] = id, key
	}
	o.enrolled++
	status := "active"
	if o.pending {
		status = "pending"
	}
	cert, config := "", fleet.DefaultConfig()
	if o.certify != nil && !o.pending {
		cert = o.certify(id, key)
	}
	return protocol.EnrollReply{Certificate: cert,
		Time: time.Now().Unix(), DeviceID: id, RegistrationToken: "receipt", Status: status, Fleet: fleetName, TrustMode: "open",
		CommandKey: base64.RawURLEncoding.EncodeToString(o.key.Public().(ed25519.PublicKey)), Config: &config,
	}
}

// publish answers from another goroutine: Receive must not block the broker.
func (o *orchestrator) publish(topic string, m any) {
	payload, err := json.Marshal(m)
	if err != nil {
		o.errors = append(o.errors, err.Error())
		return
	}
	go func() { _ = o.broker.Publish(context.Background(), topic, payload, 1, false) }()
}

// await waits until ok holds of what was noted; ok runs under the lock.
func (o *orchestrator) await(what string, ok func() bool) {
	o.t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	for {
		o.mu.Lock()
		done, changed := ok(), o.changed
		o.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline.C:
			o.mu.Lock()
			defer o.mu.Unlock()
			o.t.Fatalf("waited in vain for %s; results %+v, states %+v, requests %+v", what, o.results, o.states, o.requests)
		}
	}
}

// edit changes the orchestrator's own settings.
func (o *orchestrator) edit(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

// send signs a command and publishes it as it is.
func (o *orchestrator) send(c protocol.Command, key ed25519.PrivateKey) {
	o.t.Helper()
	payload, err := protocol.SignCommand(c, key)
	if err != nil {
		o.t.Fatal(err)
	}
	if err := o.broker.Publish(o.t.Context(), o.topics.Device(c.Device, protocol.KindCommand), payload, 1, false); err != nil {
		o.t.Fatal(err)
	}
}

// command makes the next command for a device.
func (o *orchestrator) command(device string, kind protocol.CommandType) protocol.Command {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seq++
	now := time.Now()
	return protocol.Command{ID: fleet.NewID("cmd"), Device: device, Seq: o.seq, Type: kind, IssuedAt: now.Unix(), NotAfter: now.Add(time.Hour).Unix()}
}

func (o *orchestrator) deploy(device string, ref protocol.BundleRef) protocol.Command {
	c := o.command(device, protocol.CommandDeploy)
	c.Deploy = &protocol.Deploy{Deployment: fleet.NewID("dep"), Bundle: ref, StepTimeoutS: 30}
	return c
}

// final waits for the terminal result of a command.
func (o *orchestrator) final(command string) protocol.Result {
	o.t.Helper()
	var r protocol.Result
	o.await("the end of "+command, func() bool {
		i := slices.IndexFunc(o.results, func(r protocol.Result) bool { return r.Command == command && r.State.Final() })
		if i >= 0 {
			r = o.results[i]
		}
		return i >= 0
	})
	return r
}

// run deploys and waits.
func (o *orchestrator) run(device string, ref protocol.BundleRef) protocol.Result {
	o.t.Helper()
	c := o.deploy(device, ref)
	o.send(c, o.key)
	return o.final(c.ID)
}

// pack builds a bundle from its manifest without files and its files, and puts
// it onto the archive server.
func (o *orchestrator) pack(version, manifest string, files map[string]string) protocol.BundleRef {
	o.t.Helper()
	dir := o.t.TempDir()
	text := `{"schema":1,"name":"demo","version":"` + version + `",` + manifest + `}`
	err := os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(text), 0o600)
	for name, content := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700))
	}
	var out bytes.Buffer
	info, berr := bundle.Build(dir, &out, bundle.Limits{})
	if err = errors.Join(err, berr); err != nil {
		o.t.Fatal(err)
	}
	sum := sha256.Sum256(out.Bytes())
	ref := protocol.BundleRef{Name: "demo", Version: version, Release: info.Release, Checksum: hex.EncodeToString(sum[:]), Size: int64(out.Len()), PartSize: 4 << 10}
	for part := range slices.Chunk(out.Bytes(), 4<<10) {
		s := sha256.Sum256(part)
		ref.Parts = append(ref.Parts, base64.RawURLEncoding.EncodeToString(s[:]))
	}
	o.edit(func() { o.files[ref.Checksum] = out.Bytes() })
	ref.URL, ref.URLExpiresAt = o.archives.URL+"/"+ref.Checksum, time.Now().Add(time.Minute).Unix()
	return ref
}

// stuck serves the start of an archive and then nothing.
func stuck(begun chan<- struct{}, start []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(start)
		w.(http.Flusher).Flush()
		close(begun)
		<-r.Context().Done()
	}
}
