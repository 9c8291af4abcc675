package link

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/mqttclient"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// ErrOffline is the error of a publish without a connection.
var ErrOffline = errors.New("not connected")

// Bounds of a session that the broker restricts (pending, quarantined): it is
// ended after this long to ask again, unless the broker ends it before.
const restrictedFor = 30 * time.Second

// Device is who connects.
type Device struct {
	ID    string
	Fleet string // audience of the token
	Key   identity.PrivateKey

	// Certificate returns the client certificate for brokers that ask for one,
	// nil if there is none.
	Certificate func() *tls.Certificate
	// Recertify gets another one, after such a broker would not go on.
	Recertify func(ctx context.Context) error
}

// Peer is told what happens on the link. Its methods are called one at a time
// and in order; Message may block.
type Peer interface {
	// NextSession returns the session number of the next connection: one more
	// than ever before, durable.
	NextSession() (int64, error)
	// Up says that session can publish now and receives commands; restricted
	// ones can only send heartbeats and receive acks.
	Up(session int64, restricted bool)
	Down()
	Message(kind protocol.Kind, payload []byte)
}

// Link keeps a device connected. Publish and Redial may be called from any
// goroutine.
type Link struct {
	endpoint  Endpoint
	device    Device
	peer      Peer
	redial    chan string
	certAsked bool // the broker asked for a client certificate; Run's own

	mu        sync.Mutex
	client    *mqttclient.Client
	keepAlive time.Duration
	server    time.Time // what the server's clock showed
	at        time.Time // when; zero: it was never asked
}

// New returns a Link that is not connected yet.
func New(e Endpoint, d Device, p Peer) *Link {
	return &Link{endpoint: e, device: d, peer: p, redial: make(chan string, 1), keepAlive: 30 * time.Second}
}

// Run connects, again and again, until ctx ends; then it says goodbye. With
// once set it returns nil when the first restricted session has ended, so that
// the caller can ask whether the device was approved.
func (l *Link) Run(ctx context.Context, once bool) error {
	var wait backoff
	asked := false // the server's time, since the last connection that worked
	for {
		begun := time.Now()
		restricted, err := l.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		limit := maxWait
		var refused *mqttclient.Refused
		switch {
		case err == nil:
			asked = false
			if time.Since(begun) > maxWait { // one that ends at once is a failure too
				wait.reset()
			}
			if restricted && once {
				return nil
			}
		case errors.As(err, &refused) && refused.BadCredential():
			limit = maxWaitAuth
			if !asked {
				asked = true
				if l.setClock(ctx) {
					continue // at once, with a token of that time
				}
			}
			if once {
				return nil
			}
		case l.certAsked && refusedCertificate(err) && l.device.Recertify != nil:
			limit = maxWaitAuth
			if once {
				return nil
			}
			l.endpoint.Log.Warn().Err(err).Msg("the broker does not take the client certificate: getting another")
			if err := l.device.Recertify(ctx); err != nil {
				l.endpoint.Log.Error().Err(err).Msg("no other client certificate")
			}
		}
		d := wait.next(limit)
		l.endpoint.Log.Info().Err(err).Dur("retry_in_ms", d).Msg("connecting again")
		if !pause(ctx, d) {
			return nil
		}
	}
}

// setClock takes the server's time, which only mints tokens: nobody has signed
// it.
func (l *Link) setClock(ctx context.Context) bool {
	t, err := l.endpoint.askTime(ctx)
	if err != nil {
		l.endpoint.Log.Debug().Err(err).Msg("the server's time could not be read")
		return false
	}
	l.mu.Lock()
	l.server, l.at = t, time.Now()
	l.mu.Unlock()
	l.endpoint.Log.Info().Time("time", t).Msg("took the server's time for tokens")
	return true
}

// tokenTime is the time that a token is minted for: the device's, or once the
// broker has refused that, the server's as it went on since, whatever the
// device's clock did.
func (l *Link) tokenTime() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at.IsZero() {
		return l.endpoint.now()
	}
	return l.server.Add(time.Since(l.at))
}

// SetHeartbeat adapts the keepalive of the next connections to the heartbeat
// interval: pings between rare heartbeats would be most of the traffic, but a
// NAT forgets a silent connection after about five minutes.
func (l *Link) SetHeartbeat(interval time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keepAlive = min(max(interval, 30*time.Second), 4*time.Minute)
}

// session makes one connection and holds it. A nil error means that it was up.
func (l *Link) session(ctx context.Context) (restricted bool, err error) {
	number, err := l.peer.NextSession()
	if err != nil {
		return false, fmt.Errorf("begin a session: %w", err)
	}
	l.mu.Lock()
	keepAlive := l.keepAlive
	l.mu.Unlock()
	token, err := identity.MintDeviceToken(l.device.Key, l.device.ID, l.device.Fleet, l.tokenTime())
	if err != nil {
		return false, err
	}
	goodbye, err := json.Marshal(protocol.Presence{Online: false, Session: number})
	if err != nil {
		return false, fmt.Errorf("encode presence: %w", err)
	}
	topic := func(k protocol.Kind) string { return l.endpoint.Topics.Device(l.device.ID, k) }
	client, err := mqttclient.Dial(ctx, mqttclient.Options{
		Broker: l.endpoint.Broker, TLS: l.tlsConfig(), Username: l.device.ID, ClientID: l.device.ID, Password: token,
		WillTopic: topic(protocol.KindPresence), WillPayload: goodbye, WillQoS: 1, KeepAlive: keepAlive,
		OnMessage: func(t string, payload []byte) {
			if kind, id, ok := l.endpoint.Topics.Parse(t); ok && id == l.device.ID {
				l.peer.Message(kind, payload)
			}
		},
	})
	if err != nil {
		return false, err
	}
	defer closeClient(client)
	err = client.Subscribe(ctx, topic(protocol.KindCommand), 1)
	if restricted = errors.Is(err, mqttclient.ErrRefusedFilter); restricted {
		err = nil
	}
	if err == nil {
		err = client.Subscribe(ctx, topic(protocol.KindAck), 1)
	}
	if err != nil {
		return false, err
	}
	l.hold(ctx, client, number, restricted, topic(protocol.KindPresence), goodbye)
	return restricted, nil
}

// hold is the life of a connection that is up.
func (l *Link) hold(ctx context.Context, client *mqttclient.Client, number int64, restricted bool, presence string, goodbye []byte) {
	select {
	case <-l.redial: // meant for an earlier connection
	default:
	}
	l.set(client)
	log := l.endpoint.Log.With().Int64("session", number).Logger()
	log.Info().Bool("restricted", restricted).Msg("connected")
	l.peer.Up(number, restricted)
	var limit <-chan time.Time
	if restricted {
		timer := time.NewTimer(restrictedFor)
		defer timer.Stop()
		limit = timer.C
	}
	select {
	case <-client.Done():
		log.Info().AnErr("reason", client.Err()).Msg("disconnected")
	case <-limit:
	case why := <-l.redial:
		log.Warn().Str("reason", why).Msg("giving the connection up")
	case <-ctx.Done():
		if !restricted {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			_ = client.Publish(last, presence, goodbye, 1, false) // else silence tells it
			cancel()
		}
	}
	l.set(nil)
	l.peer.Down()
}

func (l *Link) set(c *mqttclient.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.client = c
}

// Redial ends the connection, which does not do what it should, and makes
// another.
func (l *Link) Redial(why string) {
	select {
	case l.redial <- why:
	default:
	}
}

// Publish sends a message on the device's topic of that kind. Nothing is kept
// when there is no connection: ErrOffline.
func (l *Link) Publish(ctx context.Context, kind protocol.Kind, payload []byte, qos byte) error {
	l.mu.Lock()
	client := l.client
	l.mu.Unlock()
	if client == nil {
		return ErrOffline
	}
	return client.Publish(ctx, l.endpoint.Topics.Device(l.device.ID, kind), payload, qos, false)
}
