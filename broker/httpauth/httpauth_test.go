package httpauth

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const secret = "the secret that both sides share"

// orchestrator answers as its test says and counts the questions.
type orchestrator struct {
	*httptest.Server
	asked  atomic.Int64
	answer atomic.Pointer[http.HandlerFunc]
}

func newOrchestrator(t *testing.T, answer http.HandlerFunc) *orchestrator {
	o := &orchestrator{}
	o.answer.Store(&answer)
	o.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o.asked.Add(1)
		(*o.answer.Load())(w, r)
	}))
	t.Cleanup(o.Close)
	return o
}

func (o *orchestrator) says(answer http.HandlerFunc) { o.answer.Store(&answer) }

func grant(epoch int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var l login
		if json.NewDecoder(r.Body).Decode(&l) != nil || r.Header.Get("Authorization") != "Bearer "+secret {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, `{"role":"device","id":%q,"epoch":%d}`, l.Username, epoch)
	}
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	}
}

func newAuthorizer(t *testing.T, urls ...string) *Authorizer {
	t.Helper()
	a, err := New(Config{URLs: urls, Secret: secret, Log: testkit.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func device(password string) broker.Login {
	return broker.Login{Username: "dev-a", ClientID: "dev-a", Password: []byte(password), Remote: "192.0.2.1:5"}
}

func TestAnAnswerIsRememberedForTheWholeLoginOnly(t *testing.T) {
	t.Parallel()
	o := newOrchestrator(t, grant(7))
	a := newAuthorizer(t, o.URL)
	for range 3 {
		g, err := a.Authorize(t.Context(), device("one"))
		if err != nil || g != (broker.Grant{Role: broker.RoleDevice, ID: "dev-a", Epoch: 7}) {
			t.Fatalf("%+v, %v", g, err)
		}
	}
	if n := o.asked.Load(); n != 1 {
		t.Errorf("%d questions about one login", n)
	}
	o.says(status(http.StatusForbidden, `{"code":"unauthorized","message":"no"}`))
	if _, err := a.Authorize(t.Context(), device("two")); fleet.ErrorCode(err) != fleet.CodeUnauthorized {
		t.Errorf("another password: %v", err)
	}
	a.Forget("dev-a")
	if _, err := a.Authorize(t.Context(), device("one")); fleet.ErrorCode(err) != fleet.CodeUnauthorized {
		t.Errorf("after a kick: %v", err)
	}
}

func TestAnswersAreForgottenInTime(t *testing.T) {
	t.Parallel()
	c, now := newCache(), time.Now()
	good, bad := loginKey(device("good")), loginKey(device("bad"))
	c.put(good, broker.Grant{ID: "dev-a"}, nil, now)
	c.put(bad, broker.Grant{}, fleet.Errorf(fleet.CodeUnauthorized, "no"), now)
	c.put(loginKey(device("away")), broker.Grant{}, fleet.Errorf(fleet.CodeUnavailable, "away"), now)
	if len(c.by) != 2 {
		t.Errorf("%d answers, an error that is no refusal among them", len(c.by))
	}
	for after, want := range map[time.Duration][2]bool{0: {true, true}, 1100 * time.Millisecond: {true, false}, 5100 * time.Millisecond: {false, false}} {
		_, _, g := c.get(good, now.Add(after))
		_, _, b := c.get(bad, now.Add(after))
		if g != want[0] || b != want[1] {
			t.Errorf("after %v: grant %v, refusal %v", after, g, b)
		}
	}
	c.forget(func(broker.Grant) bool { return true })
	c.put(good, broker.Grant{ID: "dev-a"}, fleet.Errorf(fleet.CodeUnauthorized, "no"), now)
	if _, err, _ := c.get(good, now); err != nil {
		t.Error("an answer to a question from before a change was remembered")
	}
}

func TestTheMemoryIsBounded(t *testing.T) {
	t.Parallel()
	c, now := newCache(), time.Now()
	for i := range maxCached + 100 {
		c.put(loginKey(device(fmt.Sprint(i))), broker.Grant{}, nil, now)
	}
	if len(c.by) != maxCached {
		t.Errorf("%d answers, at most %d", len(c.by), maxCached)
	}
}

func TestPartsOfALoginAreKeptApart(t *testing.T) {
	t.Parallel()
	a := loginKey(broker.Login{Username: "ab", ClientID: "c", Password: []byte("d")})
	for _, l := range []broker.Login{
		{Username: "a", ClientID: "bc", Password: []byte("d")}, {Username: "ab", ClientID: "cd"}, {Username: "ab", ClientID: "c", Password: []byte("e")},
	} {
		if loginKey(l) == a {
			t.Errorf("%+v is taken for another login", l)
		}
	}
}

func TestEqualLoginsAtOnceAreOneQuestion(t *testing.T) {
	t.Parallel()
	gate := make(chan struct{})
	o := newOrchestrator(t, func(w http.ResponseWriter, r *http.Request) {
		<-gate
		grant(1)(w, r)
	})
	a := newAuthorizer(t, o.URL)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := a.Authorize(t.Context(), device("same")); err != nil {
				t.Error(err)
			}
		})
	}
	// One that gives up does not spoil it for the others.
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Authorize(impatient, device("same")); fleet.ErrorCode(err) != fleet.CodeUnavailable {
		t.Errorf("a login that was given up: %v", err)
	}
	testkit.Eventually(t, 10*time.Second, func() bool { return o.asked.Load() == 1 })
	close(gate)
	all.Wait()
	if n := o.asked.Load(); n != 1 {
		t.Errorf("%d questions", n)
	}
}

func TestTheNextOrchestratorIsAskedWhenOneCannotTell(t *testing.T) {
	t.Parallel()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, first := range map[string]http.HandlerFunc{
		"its database is away":  status(http.StatusServiceUnavailable, `{"code":"unavailable","message":"no"}`),
		"another secret":        status(http.StatusUnauthorized, `{"code":"forbidden","message":"no"}`),
		"a proxy's own refusal": status(http.StatusForbidden, `<html>`),
		"a redirect":            status(http.StatusFound, ``),
		"no JSON":               status(http.StatusOK, `<html>`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, good := newOrchestrator(t, first), newOrchestrator(t, grant(1))
			a := newAuthorizer(t, gone.URL, bad.URL, good.URL)
			for i := range 3 {
				if _, err := a.Authorize(t.Context(), device(fmt.Sprint(i))); err != nil {
					t.Fatal(err)
				}
			}
			if b, g := bad.asked.Load(), good.asked.Load(); b != 1 || g != 3 {
				t.Errorf("the bad one was asked %d times, the good one %d", b, g)
			}
			good.Close()
			if _, err := a.Authorize(t.Context(), device("late")); fleet.ErrorCode(err) != fleet.CodeUnavailable {
				t.Errorf("nobody can tell: %v", err)
			}
		})
	}
}

// sweeps is a Sweeper with fixed sessions.
type sweeps struct {
	mu   sync.Mutex
	have []broker.Grant
}

func (s *sweeps) Sweep(valid func(broker.Grant) bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.have)
	var keep []broker.Grant
	for _, g := range s.have {
		if valid(g) {
			keep = append(keep, g)
		}
	}
	s.have = keep
	return n - len(keep)
}

func TestWhatChangedEndsConnections(t *testing.T) {
	t.Parallel()
	now := time.Now().UTC().Format(time.RFC3339Nano)
	o := newOrchestrator(t, status(http.StatusOK, `{"now":"`+now+`","whole":true,"devices":{"same":1,"risen":2,"revoked":-1},"tokens":["tok-void"]}`))
	a := newAuthorizer(t, o.URL)
	if a.Ready(t.Context()) == nil {
		t.Error("ready before anyone was asked")
	}
	s := &sweeps{}
	for _, id := range []string{"same", "risen", "revoked", "deleted"} {
		s.have = append(s.have, broker.Grant{Role: broker.RoleDevice, ID: id, Epoch: 1})
	}
	s.have = append(s.have, broker.Grant{Role: broker.RoleMonitor, ID: "tok-void"}, broker.Grant{Role: broker.RoleService, ID: "tok-good"})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Watch(ctx, s) }()
	testkit.Eventually(t, 10*time.Second, func() error { return a.Ready(t.Context()) })
	testkit.Eventually(t, 10*time.Second, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.have) == 2 && s.have[0].ID == "same" && s.have[1].ID == "tok-good"
	})
	o.Close()
	testkit.Eventually(t, 10*time.Second, func() bool { return a.Ready(t.Context()) != nil })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestBadSettingsAreRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{
		{Secret: secret}, {URLs: []string{"http://h"}}, {URLs: []string{"h:1"}, Secret: secret}, {URLs: []string{"ftp://h"}, Secret: secret},
		{URLs: []string{"http://h/path"}, Secret: secret}, {URLs: []string{"http://u:p@h"}, Secret: secret}, {URLs: []string{"http://h", ""}, Secret: secret},
	} {
		if _, err := New(c); fleet.ErrorCode(err) != fleet.CodeInvalid {
			t.Errorf("%v: %v", c.URLs, err)
		}
	}
}
