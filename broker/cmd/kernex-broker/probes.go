package main

import (
	"context"
	"encoding/json"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// readier tells whether a part works.
type readier interface {
	Ready(ctx context.Context) error
}

// probes serves /livez, /readyz and /metrics. A broker without an orchestrator
// keeps its connections but lets nobody in: it lives and is not ready. The log
// tells when that begins and ends, not of each probe.
func probes(auth readier, reg *prometheus.Registry, log zerolog.Logger) http.Handler {
	mux := http.NewServeMux()
	var failing atomic.Bool
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n")) // the prober is gone
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		status, answer := http.StatusOK, readiness{Status: "ready", Checks: map[string]string{"authorizer": "ok"}, Reasons: map[string]string{}}
		if err := auth.Ready(r.Context()); err != nil {
			status, answer.Status, answer.Checks["authorizer"] = http.StatusServiceUnavailable, "not_ready", "failed"
			answer.Reasons["authorizer"] = fleet.ErrorMessage(err)
			if !failing.Swap(true) {
				log.Error().Err(err).Str("check", "authorizer").Msg("not ready")
			}
		} else if failing.Swap(false) {
			log.Info().Str("check", "authorizer").Msg("ready again")
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(answer) // the prober is gone
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return mux
}

type readiness struct {
	Status  string            `json:"status"` // ready or not_ready
	Checks  map[string]string `json:"checks"` // ok or failed
	Reasons map[string]string `json:"reasons"`
}
