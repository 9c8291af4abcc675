// Package remote connects an orchestrator to an MQTT broker that is a program of
// its own: kernex-broker, or any broker with shared subscriptions. Replicas
// divide what devices publish through $share; several connections each keep one
// queue of the broker from being the limit.
package remote

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"hash/fnv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/mqttclient"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// DefaultConnections is how many connections a replica opens: a broker's queue
// for one of them has 128 places.
const DefaultConnections = 8

// DefaultGroup names the shared subscriptions where every subscription needs a
// permission.
const DefaultGroup = "kernex"

// Times. A host that lost its power is noticed by the broker after 1.5 times
// keepAlive; until then it gets its share of the messages.
const (
	keepAlive      = 5 * time.Second
	publishTimeout = 5 * time.Second
	kickTimeout    = 2 * time.Second
	closeTimeout   = 2 * time.Second
	settleTime     = time.Second // connections that come back together are one Connected
)

// queueSize bounds messages of one connection that wait for Receive, which does
// not block.
const queueSize = 1024

// Config says how to reach the broker.
type Config struct {
	Topics protocol.Topics
	Broker string      // tcp:// or mqtts:// URL
	TLS    *tls.Config // for mqtts; nil is the system's roots
	// Login returns user name and password for one connection. refused says that
	// the broker did not take what it returned before.
	Login func(ctx context.Context, refused bool) (username, password string, err error)
	// Life ends a connection after a random time between half of it and all of
	// it, for credentials that expire; 0: never.
	Life time.Duration
	// Group names the shared subscriptions, so that each message reaches one
	// connection of one replica: the same for all of them. Brokers that refuse
	// delivery instead of subscription (Mosquitto) need one that nobody can guess:
	// a stranger in the group would swallow its share. "" is DefaultGroup.
	Group       string
	Name        string // begins the client ids, without blanks and wildcards
	Connections int    // 0 is DefaultConnections
	Registerer  prometheus.Registerer
	Log         zerolog.Logger
}

// Transport is the way to devices and monitors over the broker. Run makes it
// work; Publish, Kick, Recheck, Ready and Connected may be called before.
type Transport struct {
	cfg       Config
	filters   []filter
	slots     []slot
	metrics   *metrics
	trouble   zerolog.Logger // bounded: every connection fails at once when the broker is away
	kicks     chan string
	ups       chan struct{}
	connected chan struct{}
	quiet     atomic.Bool // take no more messages
	lastErr   atomic.Pointer[error]
}

type filter struct {
	name string
	qos  byte
}

// slot is the place of one connection.
type slot struct {
	id     string
	client atomic.Pointer[mqttclient.Client] // nil: not connected
}

// New makes a Transport; it connects to nothing.
func New(cfg Config) (*Transport, error) {
	if cfg.Connections == 0 {
		cfg.Connections = DefaultConnections
	}
	if cfg.Group == "" {
		cfg.Group = DefaultGroup
	}
	if cfg.Connections < 1 || cfg.Connections > 256 {
		return nil, fleet.Errorf(fleet.CodeInvalid, "%d connections to the broker, it must be between 1 and 256", cfg.Connections)
	}
	t := &Transport{
		cfg: cfg, filters: filters(cfg.Topics, cfg.Group), slots: make([]slot, cfg.Connections),
		trouble: cfg.Log.Sample(&zerolog.BurstSampler{Burst: 2, Period: 10 * time.Second}),
		kicks:   make(chan string, 1024), ups: make(chan struct{}, 1), connected: make(chan struct{}, 1),
	}
	process := strings.ToLower(rand.Text()[:8]) // another process of the same name is another client
	for i := range t.slots {
		t.slots[i].id = fmt.Sprintf("%s-%s-%d", cfg.Name, process, i)
	}
	t.metrics = newMetrics(t, cfg.Registerer)
	return t, nil
}

// filters are the subscriptions of each connection.
func filters(topics protocol.Topics, group string) []filter {
	var out []filter
	group = "$share/" + group + "/"
	for _, k := range []protocol.Kind{protocol.KindHeartbeat, protocol.KindState, protocol.KindResult, protocol.KindLog, protocol.KindRequest, protocol.KindPresence} {
		qos := byte(1)
		if k == protocol.KindHeartbeat {
			qos = 0
		}
		out = append(out, filter{group + topics.Device("+", k), qos})
	}
	return append(out, filter{group + topics.EnrollRequest("+"), 1})
}

// Run keeps the connections up until ctx ends and hands what devices publish to
// receive, which must not block. Call Quiesce first to end without losing what
// is on its way.
func (t *Transport) Run(ctx context.Context, receive func(topic string, payload []byte)) error {
	var loops sync.WaitGroup
	for i := range t.slots {
		loops.Go(func() { t.keep(ctx, &t.slots[i], receive) })
	}
	loops.Go(func() { t.kickAll(ctx) })
	loops.Go(func() { t.settle(ctx) })
	loops.Wait()
	return nil
}

// Publish hands a message to the broker; messages of one topic keep their order
// while the connections stay up. A nil error at QoS 1 means that the broker
// acknowledged it on the connection that carried it. Without a connection, and
// when the broker does not answer for 5 s, the error is fleet.CodeUnavailable.
func (t *Transport) Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error {
	c := t.pick(topic)
	if c == nil {
		t.metrics.published.WithLabelValues("no_connection").Inc()
		return fleet.Errorf(fleet.CodeUnavailable, "publish %s: there is no connection to the broker", topic)
	}
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if err := c.Publish(ctx, topic, payload, qos, retain); err != nil {
		t.metrics.published.WithLabelValues("failed").Inc()
		return fleet.Wrap(fleet.CodeUnavailable, err, "the broker did not take a message")
	}
	t.metrics.published.WithLabelValues("ok").Inc()
	return nil
}

// pick returns the connection of a topic: its own if that is up, else the next.
func (t *Transport) pick(topic string) *mqttclient.Client {
	h := fnv.New32a()
	_, _ = h.Write([]byte(topic))
	n := uint32(len(t.slots)) //nolint:gosec // at most 256
	for i := range n {
		if c := t.slots[(h.Sum32()%n+i)%n].client.Load(); c != nil && c.Err() == nil {
			return c
		}
	}
	return nil
}

// Kick asks the broker to end the connections of a device or an API token. It
// does not wait: a kick that is lost is made up for by the broker's own look at
// the credentials.
func (t *Transport) Kick(id string) {
	select {
	case t.kicks <- id:
	default:
		t.metrics.lostKicks.Inc()
	}
}

func (t *Transport) kickAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-t.kicks:
			op, cancel := context.WithTimeout(ctx, kickTimeout)
			err := t.Publish(op, t.cfg.Topics.Kick(id), []byte("{}"), 1, false)
			cancel()
			if err != nil && ctx.Err() == nil {
				t.metrics.lostKicks.Inc()
				t.trouble.Warn().Err(err).Str("id", id).Msg("a disconnection was not asked for; the broker finds it itself within seconds")
			}
		}
	}
}

// Recheck does nothing: the broker's connections are in another process, which
// asks for changed credentials itself.
func (t *Transport) Recheck(func(device bool, id string, epoch int64) bool) {}

// Up returns how many connections are up.
func (t *Transport) Up() int {
	n := 0
	for i := range t.slots {
		if c := t.slots[i].client.Load(); c != nil && c.Err() == nil {
			n++
		}
	}
	return n
}

// Ready returns nil when there is a connection, else why there is none.
func (t *Transport) Ready(context.Context) error {
	if t.Up() > 0 {
		return nil
	}
	if err := t.lastErr.Load(); err != nil {
		return fleet.Wrap(fleet.CodeUnavailable, *err, "no connection to the broker")
	}
	return fleet.Errorf(fleet.CodeUnavailable, "no connection to the broker yet")
}

// Connected gets a value after connections came up: the broker may have
// restarted and lost what it retained.
func (t *Transport) Connected() <-chan struct{} { return t.connected }

func (t *Transport) settle(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.ups:
		}
		if !pause(ctx, settleTime) {
			return
		}
		signal(t.connected)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Quiesce ends the subscriptions and waits until the broker has confirmed it:
// from then on other replicas get the messages, while this one can still
// publish its answers. Connections that come up later do not subscribe.
func (t *Transport) Quiesce(ctx context.Context) error {
	t.quiet.Store(true)
	errs := make([]error, len(t.slots))
	var all sync.WaitGroup
	for i := range t.slots {
		if c := t.slots[i].client.Load(); c != nil && c.Err() == nil {
			all.Go(func() { errs[i] = t.unsubscribe(ctx, c) })
		}
	}
	all.Wait()
	for i, err := range errs {
		if c := t.slots[i].client.Load(); err != nil && c != nil && c.Err() == nil { // else it ended, which is as good
			return err
		}
	}
	return nil
}

func (t *Transport) unsubscribe(ctx context.Context, c *mqttclient.Client) error {
	names := make([]string, len(t.filters))
	for i, f := range t.filters {
		names[i] = f.name
	}
	return c.Unsubscribe(ctx, names...)
}
