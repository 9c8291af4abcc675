// Package api is the admin HTTP API: it decodes, checks and authorises, and
// calls one store method a request. The contract is docs/api-spec.md and the
// OpenAPI document that this package generates.
package api

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/bundle"
)

// base is the path of version 1.
const base = "/api/v1"

// Config is what the API works on. Store, Objects and Registry must be set.
type Config struct {
	Store    Store
	Objects  Objects
	Logger   zerolog.Logger
	Registry *prometheus.Registry // gets this package's metrics and is served at /metrics
	Fleet    string               // the fleet's name, the source of its events

	MaxBundle int64 // bytes of an uploaded bundle; 0 is bundle.DefaultMaxBytes
	MaxBody   int64 // bytes of any other body; 0 is 1 MiB

	TokenRate   Rate // of one token; zero is 200 a second, 400 at once; below zero no limit
	AddressRate Rate // of one address, before it is known who it is; zero is 400, 800; below zero no limit

	// TrustedProxies are the peers whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix

	Ready    []Check         // what /readyz asks
	Warnings func() []string // what /readyz warns of; nil is nothing
	Console  http.Handler    // serves /; nil answers 404
}

// Check is one thing without which this process is not ready.
type Check struct {
	Name string
	Run  func(ctx context.Context) error
}

// The defaults of Config.
const defaultBody = 1 << 20

var (
	defaultTokenRate   = Rate{PerSecond: 200, Burst: 400}
	defaultAddressRate = Rate{PerSecond: 400, Burst: 800}
)

// API is the handler of everything that this process serves over HTTP.
type API struct {
	cfg       Config
	huma      huma.API
	mux       *http.ServeMux // calls below base
	handler   http.Handler
	metrics   *metrics
	tokens    *limiter
	addresses *limiter
	events    *wake
	health    health
	spec      []byte // OpenAPI as JSON
}

// New makes the API. It starts nothing; Close ends the streams that it serves.
func New(cfg Config) *API {
	if cfg.MaxBundle == 0 {
		cfg.MaxBundle = bundle.DefaultMaxBytes
	}
	if cfg.MaxBody == 0 {
		cfg.MaxBody = defaultBody
	}
	if cfg.TokenRate == (Rate{}) {
		cfg.TokenRate = defaultTokenRate
	}
	if cfg.AddressRate == (Rate{}) {
		cfg.AddressRate = defaultAddressRate
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	a := &API{
		cfg: cfg, mux: http.NewServeMux(), metrics: newMetrics(cfg.Registry),
		tokens: newLimiter(cfg.TokenRate), addresses: newLimiter(cfg.AddressRate), events: newWake(),
	}
	a.huma = humago.NewWithPrefix(a.mux, base, humaConfig())
	a.registerDevices()
	a.registerConfig()
	a.registerLogs()
	a.registerBundles()
	a.registerDeployments()
	a.registerTokens()
	a.registerReleaseKeys()
	a.registerAudit()
	a.registerEvents()
	a.spec = specJSON(a.huma.OpenAPI())
	a.handler = a.routes()
	return a
}

// ServeHTTP serves one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.handler.ServeHTTP(w, r) }

// WakeEvents tells the event streams that there are new numbered events.
// Without it they look every 15 s.
func (a *API) WakeEvents() { a.events.wake() }

// Close ends every event stream, so that the server's Shutdown does not wait for
// them. It may be called more than once.
func (a *API) Close() { a.events.close() }

func (a *API) routes() http.Handler {
	top := http.NewServeMux()
	top.HandleFunc("GET /livez", a.livez)
	top.HandleFunc("GET "+readyPath, a.readyz)
	top.Handle("GET /metrics", promhttp.HandlerFor(a.cfg.Registry, promhttp.HandlerOpts{}))
	top.HandleFunc("GET /openapi.json", a.openapi)
	top.HandleFunc("GET /docs", a.docs)
	top.Handle("/api/", a.limitAddress(a.authenticate(a.route(a.readBody(a.mux)))))
	if a.cfg.Console != nil {
		top.Handle("/", a.cfg.Console)
	} else {
		top.HandleFunc("/", a.notFound)
	}
	// The mux itself would answer an unclean path with a redirect.
	clean := a.cleanPath(top)
	return a.observe(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/api/") {
			clean.ServeHTTP(w, r)
			return
		}
		top.ServeHTTP(w, r)
	}))
}

// How long one ordinary request may take to arrive and to be answered. Uploads
// and streams move their own deadlines on.
const (
	readLimit  = 30 * time.Second
	writeLimit = 60 * time.Second
)
