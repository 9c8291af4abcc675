package broker

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/logging"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Config is what a broker needs. The zero value of each limit means its
// default.
type Config struct {
	Addr       string      // host:port to listen on; port 0 picks a free one
	TLS        *tls.Config // nil: plain TCP; at least TLS 1.2 is asked for
	Also       []Listen    // further addresses; Addr may then be ""
	Topics     protocol.Topics
	Logger     zerolog.Logger
	Registerer prometheus.Registerer // nil: no metrics are registered
	// OnKick, if set, is called with the id of a device or an API token before
	// its connections are ended; it must not block. An Authorizer that remembers
	// answers forgets those.
	OnKick func(id string)

	ConnectTimeout time.Duration // from accept to the end of CONNECT; default 5 s
	WriteTimeout   time.Duration // for what waits on a peer that does not read, then the connection is closed; default 5 s
	EnrollTimeout  time.Duration // life of an enroll connection; default 30 s
	ClockTimeout   time.Duration // life of a clock connection; default 5 s
	MaxClients     int           // open sockets; default nine tenths of the descriptor limit
	MaxWaiting     int           // sockets before CONNECT from one address; default 1,000
	EnrollRate     float64       // enroll and clock logins a second from one address; default 10
	EnrollBurst    int           // as many at once; default 100: a site behind one NAT is normal
}

// Listen is one address that a broker listens on.
type Listen struct {
	Addr string      // host:port; port 0 picks a free one
	TLS  *tls.Config // nil: plain TCP
}

func (c *Config) setDefaults() {
	setDefault(&c.ConnectTimeout, 5*time.Second)
	setDefault(&c.WriteTimeout, 5*time.Second)
	setDefault(&c.EnrollTimeout, 30*time.Second)
	setDefault(&c.ClockTimeout, 5*time.Second)
	setDefault(&c.MaxClients, maxClients())
	setDefault(&c.MaxWaiting, 1000)
	setDefault(&c.EnrollRate, 10)
	setDefault(&c.EnrollBurst, 100)
	if c.Topics.Root == "" {
		c.Topics = protocol.NewTopics("")
	}
}

// listens are all addresses, the first one first.
func (c *Config) listens() []Listen {
	var all []Listen
	if c.Addr != "" || len(c.Also) == 0 {
		all = append(all, Listen{Addr: c.Addr, TLS: c.TLS})
	}
	all = append(all, c.Also...)
	for i := range all {
		if t := all[i].TLS; t != nil {
			all[i].TLS = t.Clone()
			all[i].TLS.MinVersion = max(t.MinVersion, tls.VersionTLS12)
		}
	}
	return all
}

func setDefault[T int | float64 | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// Broker is an MQTT broker.
type Broker struct {
	cfg      Config
	log      zerolog.Logger
	refused  zerolog.Logger // bounded: refusals are what an attacker can make many of
	server   *mqtt.Server
	listener *listener
	sessions sessions
	enrolls  rateByAddr
	states   *fleetStates
	shares   shares
	metrics  *metrics
	stopping chan struct{} // closed when Serve begins to stop

	// Set by Serve before the first connection is accepted.
	ctx    context.Context //nolint:containedctx // mochi's hooks have none; this is Serve's
	auth   Authorizer
	ingest Ingest
}

// New listens on the configured addresses; connections wait in the kernel's
// backlog until Serve. Serve must be called, if only with a context that has
// ended, to let go of the addresses.
func New(cfg Config) (*Broker, error) {
	cfg.setDefaults()
	ins, err := listen(cfg.listens())
	if err != nil {
		return nil, err
	}
	b := &Broker{
		cfg:      cfg,
		log:      cfg.Logger,
		refused:  cfg.Logger.Sample(&zerolog.BurstSampler{Burst: 20, Period: time.Second}),
		sessions: sessions{by: make(map[string]*session)},
		stopping: make(chan struct{}),
	}
	b.enrolls = newRateByAddr(cfg.EnrollRate, cfg.EnrollBurst)
	b.listener = newListener(b, ins)
	b.server = mqtt.New(options(cfg))
	b.states = newFleetStates(b)
	b.metrics = newMetrics(b)
	err = b.server.AddHook(&hook{b: b}, nil)
	if err == nil {
		err = b.server.AddListener(b.listener)
	}
	if err == nil && cfg.Registerer != nil {
		err = b.metrics.register(cfg.Registerer)
	}
	if err != nil {
		for _, in := range ins {
			_ = in.Close()
		}
		return nil, fleet.Errorf(fleet.CodeInternal, "set up the broker: %w", err)
	}
	return b, nil
}

// options are mochi's settings. Where a number is not the default, the default
// was measured to cost memory or to let a client cost it.
func options(cfg Config) *mqtt.Options {
	c := mqtt.NewDefaultServerCapabilities()
	c.MaximumClients = int64(cfg.MaxClients)
	c.MaximumMessageExpiryInterval = 0 // else retained messages vanish after a day
	c.MaximumClientWritesPending = 128 // preallocated: 1 KiB a client, not 64
	c.MaximumSessionExpiryInterval = 3600
	c.MaximumPacketSize = 128 << 10 // unlimited by default: 5 bytes from a stranger allocate 256 MiB
	c.ReceiveMaximum = 64
	c.MaximumInflight = 256
	c.TopicAliasMaximum = 0 // aliases reach the access check as ""
	c.MaximumQos = 1
	c.Compatibilities.NoInheritedPropertiesOnAck = true
	return &mqtt.Options{
		Capabilities:             c,
		ClientNetReadBufferSize:  512,
		ClientNetWriteBufferSize: 512,
		SysTopicResendInterval:   30,
		InlineClient:             true,
		Logger:                   logging.NewSlog(mochiLog(cfg.Logger)),
	}
}

// mochiLog is the logger for mochi. Below debug it gets errors only: any client
// can cause as many of its warnings as it likes, and the hook reports refusals
// itself, bounded.
func mochiLog(l zerolog.Logger) zerolog.Logger {
	l = l.With().Str("part", "mochi").Logger()
	if l.GetLevel() > zerolog.DebugLevel || zerolog.GlobalLevel() > zerolog.DebugLevel {
		l = l.Level(max(l.GetLevel(), zerolog.ErrorLevel))
	}
	return l
}

// Addr is the first address that the broker listens on.
func (b *Broker) Addr() net.Addr { return b.listener.ins[0].Addr() }

// Addrs are all of them, in the order of the configuration.
func (b *Broker) Addrs() []net.Addr {
	var all []net.Addr
	for _, in := range b.listener.ins {
		all = append(all, in.Addr())
	}
	return all
}

// Serve accepts connections until ctx ends, then closes every connection,
// waits for all of them and returns nil. With an ingest, what devices publish
// goes there and nowhere else; without one (a broker beside orchestrators that
// subscribe) it is routed like any message. Serve is called once.
func (b *Broker) Serve(ctx context.Context, auth Authorizer, in Ingest) error {
	b.ctx, b.auth, b.ingest = ctx, auth, in
	var workers sync.WaitGroup
	if ctx.Err() == nil {
		for range replayWorkers {
			workers.Go(func() { b.states.replay(ctx) })
		}
		if err := b.server.Serve(); err != nil {
			return fleet.Errorf(fleet.CodeInternal, "start the broker: %w", err)
		}
		for _, in := range b.listener.ins {
			b.log.Info().Stringer("addr", in.Addr()).Bool("tls", in.tls != nil).Msg("broker listening")
		}
		<-ctx.Done()
	}
	close(b.stopping)
	err := b.server.Close()
	workers.Wait()
	if err != nil {
		return fleet.Errorf(fleet.CodeInternal, "stop the broker: %w", err)
	}
	return nil
}

func (b *Broker) isStopping() bool {
	select {
	case <-b.stopping:
		return true
	default:
		return false
	}
}

// Publish publishes from inside the process, past the access table. It waits
// for no subscriber (20 ms, once, for one that just stopped reading): one whose
// queue is full or whose socket does not drain loses the message, which is
// counted. No error means handed out, not received.
func (b *Broker) Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error {
	if err := ctx.Err(); err != nil {
		return fleet.Wrap(fleet.CodeUnavailable, err, "publish "+topic)
	}
	if b.isStopping() {
		return fleet.Errorf(fleet.CodeUnavailable, "publish %s: the broker is stopping", topic)
	}
	if !mqtt.IsValidFilter(topic, true) || topic == "" || qos > 1 || len(payload) > 120<<10 {
		return fleet.Errorf(fleet.CodeInvalid, "publish %q, QoS %d, %d bytes: needs a topic without wildcards, QoS 0 or 1 and at most 120 KiB", topic, qos, len(payload))
	}
	if err := b.server.Publish(topic, payload, retain, qos); err != nil {
		return fleet.Errorf(fleet.CodeInternal, "publish %s: %w", topic, err)
	}
	return nil
}

// Kick closes the connections of a device or of an API token. A device's will
// is delivered.
func (b *Broker) Kick(id string) {
	if b.cfg.OnKick != nil {
		b.cfg.OnKick(id)
	}
	if s := b.sessions.get(id); s != nil && s.grant.Role == RoleDevice {
		b.metrics.refuse(reasonKicked)
		s.cl.Stop(packets.ErrAdministrativeAction)
		return
	}
	b.Sweep(func(g Grant) bool { return g.Role == RoleDevice || g.ID != id })
}

// Sweep closes every connection of a device, service or monitor whose grant is
// not valid any more and returns how many it closed. It is the net below Kick:
// called every few seconds, it ends what a lost kick left over.
func (b *Broker) Sweep(valid func(Grant) bool) int {
	closed := 0
	for _, s := range b.sessions.all() {
		if s.grant.Role == RoleEnroll || s.grant.Role == RoleClock || valid(s.grant) {
			continue
		}
		closed++
		b.metrics.refuse(reasonKicked)
		s.cl.Stop(packets.ErrAdministrativeAction)
	}
	return closed
}

// Connected returns how many clients are logged in.
func (b *Broker) Connected() int { return b.sessions.count() }
