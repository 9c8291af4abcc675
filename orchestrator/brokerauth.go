package orchestrator

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/strictjson"
)

// The calls that a broker on another host makes. They stand on a listener of
// their own, never beside the admin API.
const (
	brokerAuthPath   = "/internal/v1/broker/auth"
	brokerGrantsPath = "/internal/v1/broker/grants"
)

// MinSharedSecret is the least length of the secret that brokers and
// orchestrators share, in bytes: 24 random bytes in base64.
const MinSharedSecret = 32

// maxLogin bounds a login: a device's token has at most 4 KiB.
const maxLogin = 16 << 10

// brokerLogin is the question; httpauth.Authorizer asks it.
type brokerLogin struct {
	Username string `json:"username"`
	ClientID string `json:"client_id"`
	Password []byte `json:"password"`
	Remote   string `json:"remote"` // for the log
}

// brokerGrants is what became of credentials since a time.
type brokerGrants struct {
	Now     time.Time        `json:"now"`     // by the database's clock, read before the rest
	Whole   bool             `json:"whole"`   // a device that is missing does not exist
	Devices map[string]int64 `json:"devices"` // auth epoch by id; -1: revoked
	Tokens  []string         `json:"tokens"`  // void API tokens
}

// Internal is the handler of what brokers ask. Every request carries secret as
// a bearer token.
func (o *Orchestrator) Internal(secret string) (http.Handler, error) {
	if len(secret) < MinSharedSecret {
		return nil, fleet.Errorf(fleet.CodeInvalid, "the shared secret has %d bytes, it must have at least %d; make one with: openssl rand -base64 32", len(secret), MinSharedSecret)
	}
	answers := promauto.With(o.cfg.Registry).NewCounterVec(prometheus.CounterOpts{Namespace: "kernex", Subsystem: "orchestrator", Name: "broker_requests_total",
		Help: "What brokers asked, by call and status."}, []string{"call", "status"})
	in := &internal{o: o, secret: sha256.Sum256([]byte(secret)), answers: answers, refused: o.log.Sample(&zerolog.BurstSampler{Burst: 2, Period: 10 * time.Second})}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+brokerAuthPath, in.call("auth", in.auth))
	mux.HandleFunc("GET "+brokerGrantsPath, in.call("grants", in.grants))
	return mux, nil
}

type internal struct {
	o       *Orchestrator
	secret  [sha256.Size]byte
	answers *prometheus.CounterVec
	refused zerolog.Logger // bounded
}

// call checks the secret, and turns an answer or an error into JSON. Only the
// code "unauthorized" with status 403 refuses a login; everything else means
// that this orchestrator cannot tell.
func (in *internal) call(name string, f func(r *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusOK
		var answer any
		var err error
		if !in.allowed(r) {
			status, answer = http.StatusUnauthorized, refusal{Code: fleet.CodeForbidden, Message: "the shared secret is another one"}
			in.refused.Warn().Str("remote", r.RemoteAddr).Str("call", name).Msg("a broker with another shared secret was refused")
		} else if answer, err = f(r); err != nil {
			status, answer = internalStatus(err), refusal{Code: fleet.ErrorCode(err), Message: fleet.ErrorMessage(err)}
			if status >= http.StatusInternalServerError && r.Context().Err() == nil {
				in.o.own.Error().Err(err).Str("call", name).Msg("a broker was not answered")
			}
		}
		in.answers.WithLabelValues(name, strconv.Itoa(status)).Inc()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(answer) // the broker is gone, or asks the next one
	}
}

type refusal struct {
	Code    fleet.Code `json:"code"`
	Message string     `json:"message"`
}

func internalStatus(err error) int {
	switch fleet.ErrorCode(err) {
	case fleet.CodeUnauthorized:
		return http.StatusForbidden
	case fleet.CodeInvalid:
		return http.StatusBadRequest
	case fleet.CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case fleet.CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// allowed compares digests, which takes the same time for every wrong secret.
func (in *internal) allowed(r *http.Request) bool {
	given, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	sum := sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(sum[:], in.secret[:]) == 1
}

func (in *internal) auth(r *http.Request) (any, error) {
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxLogin))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, fleet.Errorf(fleet.CodeTooLarge, "a login has at most %d bytes", maxLogin)
	case err != nil:
		return nil, fleet.Wrap(fleet.CodeInvalid, err, "the request did not arrive")
	}
	var l brokerLogin
	if err := strictjson.Decode(body, &l, false); err != nil {
		return nil, fleet.Wrap(fleet.CodeInvalid, err, "a login is one JSON object")
	}
	return in.o.Authorize(r.Context(), l.Username, l.ClientID, l.Password)
}

func (in *internal) grants(r *http.Request) (any, error) {
	var since time.Time
	if s := r.URL.Query().Get("since"); s != "" {
		var err error
		if since, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return nil, fleet.Errorf(fleet.CodeInvalid, "since %.64q is no RFC 3339 time", s)
		}
	}
	now, err := in.o.db.Now(r.Context())
	if err != nil {
		return nil, err
	}
	g, err := in.o.db.GrantsChanged(r.Context(), since)
	if err != nil {
		return nil, err
	}
	out := brokerGrants{Now: now.UTC(), Whole: g.Whole, Devices: g.Devices, Tokens: make([]string, 0, len(g.Tokens))}
	for id := range g.Tokens {
		out.Tokens = append(out.Tokens, id)
	}
	return out, nil
}
