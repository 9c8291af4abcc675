package service

import (
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHealthcheckSaysWhatReadyzSays(t *testing.T) {
	t.Parallel()
	for _, network := range []struct{ listen, ask string }{{"127.0.0.1:0", "0.0.0.0"}, {"127.0.0.1:0", ""}, {"127.0.0.1:0", "127.0.0.1"}, {"[::1]:0", "::"}} {
		answers := make(chan int, 2)
		answers <- http.StatusOK
		answers <- http.StatusServiceUnavailable
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", network.listen)
		if err != nil {
			t.Fatal(err)
		}
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/readyz" {
				t.Errorf("asked %s", r.URL.Path)
			}
			w.WriteHeader(<-answers)
			_, _ = w.Write([]byte("postgres: away\n"))
		}))
		s.Listener = l
		s.Start()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		addr := net.JoinHostPort(network.ask, port)
		if err := Healthcheck(t.Context(), addr); err != nil {
			t.Errorf("%s, ready: %v", addr, err)
		}
		if err := Healthcheck(t.Context(), addr); err == nil || !strings.Contains(err.Error(), "503: postgres: away") {
			t.Errorf("%s, not ready: %v", addr, err)
		}
		s.Close()
		if err := Healthcheck(t.Context(), addr); err == nil {
			t.Errorf("%s: nobody listens, and it is healthy", addr)
		}
	}
	if err := Healthcheck(t.Context(), "none"); err == nil {
		t.Error("no listener, and it is healthy")
	}
}
