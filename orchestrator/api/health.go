package api

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// readyLimit is how long all checks of /readyz may take.
const readyLimit = 5 * time.Second

// livez says that the process serves requests.
func (a *API) livez(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write([]byte("ok\n")) // the prober is gone
}

type readiness struct {
	Status   string            `json:"status"` // ready or not_ready
	Checks   map[string]string `json:"checks"` // ok or failed; why is in the log
	Warnings []string          `json:"warnings"`
}

// readyz answers 200 when everything that this process needs works, else 503.
func (a *API) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), readyLimit)
	defer cancel()
	answer := readiness{Status: "ready", Checks: map[string]string{}, Warnings: []string{}}
	for _, c := range a.cfg.Ready {
		answer.Checks[c.Name] = "ok"
		if err := c.Run(ctx); err != nil {
			answer.Checks[c.Name], answer.Status = "failed", "not_ready"
			a.cfg.Logger.Warn().Err(err).Str("check", c.Name).Msg("not ready")
		}
	}
	if a.cfg.Warnings != nil {
		answer.Warnings = append(answer.Warnings, a.cfg.Warnings()...)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if answer.Status != "ready" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(answer) // the prober is gone
}
