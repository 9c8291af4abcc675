// Package mqttclient is an MQTT 3.1.1 client behind context and error: paho
// with its traps closed.
//
// A Client is one connection and is never reconnected: paho's own reconnecting
// has no jitter, resends what it stored even in clean sessions and keeps the
// old will. Whoever wants to stay connected dials again, with a new will and a
// new password. Nothing is stored: what was not acknowledged when the
// connection ended is the caller's to send again.
package mqttclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	paho "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Refused is a CONNACK with another code than 0.
type Refused struct{ Code byte }

// Error says what the code means.
func (e *Refused) Error() string {
	if s, ok := packets.ConnackReturnCodes[e.Code]; ok {
		return fmt.Sprintf("%s (CONNACK %d)", s, e.Code)
	}
	return fmt.Sprintf("the broker refused the connection (CONNACK %d)", e.Code)
}

// BadCredential reports whether the broker knows neither user nor password, or
// grants them nothing (codes 4 and 5): the same login again is of no use.
func (e *Refused) BadCredential() bool {
	return e.Code == packets.ErrRefusedBadUsernameOrPassword || e.Code == packets.ErrRefusedNotAuthorised
}

// ErrClosed is the reason of a connection that Close ended.
var ErrClosed = errors.New("the MQTT client was closed")

// ErrRefusedFilter is the error of a subscription that the broker refused.
var ErrRefusedFilter = errors.New("the broker refuses the subscription")

// Client is one MQTT connection. Its methods may be called at the same time.
type Client struct {
	paho    paho.Client
	dialer  *dialer
	queue   chan message
	dropped atomic.Uint64
	worker  sync.WaitGroup

	end  sync.Once
	done chan struct{}
	err  error // why it ended; set before done is closed
}

type message struct {
	topic   string
	payload []byte
}

// Dial connects and logs in. An error that holds a *Refused is the broker's
// answer; every other one came from the network, ctx or the options.
func Dial(ctx context.Context, o Options) (*Client, error) {
	o.setDefaults()
	addr, conf, err := o.endpoint()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.ConnectTimeout)
	defer cancel()
	c := &Client{
		dialer: &dialer{ctx: ctx, addr: addr, conf: conf, timeout: o.WriteTimeout},
		queue:  make(chan message, o.Queue),
		done:   make(chan struct{}),
	}
	c.paho = paho.NewClient(c.options(o))
	token := c.paho.Connect()
	select {
	case <-token.Done():
	case <-ctx.Done():
		c.dialer.cut()
		<-token.Done() // soon: the dial has ctx, and the socket is closed
	}
	err = token.Error()
	if err == nil {
		err = ctx.Err() // cut a moment after it was up
	}
	if err != nil {
		c.paho.Disconnect(0)
		return nil, connectError(ctx, o.Broker, token, err)
	}
	c.worker.Go(func() { c.deliver(o.OnMessage) })
	return c, nil
}

// connectError tells the broker's answer from all other failures.
func connectError(ctx context.Context, broker string, token paho.Token, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("connect to %s: %w", broker, errors.Join(ctx.Err(), err))
	}
	if t, ok := token.(*paho.ConnectToken); ok {
		if code := t.ReturnCode(); code != packets.Accepted && code != packets.ErrNetworkError && code != packets.ErrProtocolViolation {
			return fmt.Errorf("connect to %s: %w", broker, &Refused{Code: code})
		}
	}
	return fmt.Errorf("connect to %s: %w", broker, err)
}

func (c *Client) options(o Options) *paho.ClientOptions {
	p := paho.NewClientOptions()
	p.AddBroker("tcp://" + c.dialer.addr) // only a name here: the dialer knows where to
	p.SetClientID(o.ClientID)
	p.SetUsername(o.Username)
	p.SetPassword(o.Password)
	p.SetProtocolVersion(4) // else a refusal is followed by a second try with 3.1
	p.SetCleanSession(true)
	p.SetAutoReconnect(false)
	p.SetConnectRetry(false)
	p.SetKeepAlive(o.KeepAlive)
	p.SetPingTimeout(10 * time.Second)
	p.SetConnectTimeout(o.ConnectTimeout)
	p.SetWriteTimeout(o.WriteTimeout)
	if o.WillTopic != "" {
		p.SetBinaryWill(o.WillTopic, o.WillPayload, o.WillQoS, false)
	}
	// With order kept paho calls the handler from its one reading goroutine;
	// without, it starts a goroutine for each message and the order is lost.
	// The handler never blocks, which is what makes keeping it safe.
	p.SetOrderMatters(true)
	p.SetDefaultPublishHandler(func(_ paho.Client, m paho.Message) {
		select {
		case c.queue <- message{topic: m.Topic(), payload: m.Payload()}:
		default:
			c.dropped.Add(1)
		}
	})
	p.SetConnectionLostHandler(func(_ paho.Client, err error) { c.finish(fmt.Errorf("MQTT connection lost: %w", err)) })
	p.SetCustomOpenConnectionFn(func(*url.URL, paho.ClientOptions) (net.Conn, error) { return c.dialer.dial() })
	return p
}

// deliver hands messages to f until the connection ends; those that had
// arrived by then are still handed over, unless the client was closed.
func (c *Client) deliver(f func(topic string, payload []byte)) {
	if f == nil {
		f = func(string, []byte) {}
	}
	for {
		select {
		case m := <-c.queue:
			f(m.topic, m.payload)
			continue
		case <-c.done:
		}
		for c.err != ErrClosed { //nolint:errorlint // our own value, never wrapped
			select {
			case m := <-c.queue:
				f(m.topic, m.payload)
				continue
			default:
			}
			break
		}
		return
	}
}

func (c *Client) finish(err error) {
	c.end.Do(func() {
		c.err = err
		close(c.done)
	})
}

// Done is closed when the connection has ended; Err then says why.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns nil while the connection is up, then why it ended: ErrClosed
// after Close.
func (c *Client) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Dropped returns how many messages were dropped because OnMessage was behind.
func (c *Client) Dropped() uint64 { return c.dropped.Load() }

// Subscribe subscribes to a filter and waits for the broker's answer.
func (c *Client) Subscribe(ctx context.Context, filter string, qos byte) error {
	token, err := c.wait(ctx, func() paho.Token { return c.paho.Subscribe(filter, qos, nil) })
	if err != nil {
		return fmt.Errorf("subscribe to %s: %w", filter, err)
	}
	sub, ok := token.(*paho.SubscribeToken)
	if !ok || len(sub.Result()) == 0 {
		return fleet.Errorf(fleet.CodeInternal, "subscribe to %s: no answer in the token", filter)
	}
	for _, code := range sub.Result() {
		if code >= 0x80 {
			return fleet.Wrap(fleet.CodeForbidden, ErrRefusedFilter, "subscribe to "+filter)
		}
	}
	return nil
}

// Publish publishes. At QoS 1 a nil error means that the broker has the
// message; at QoS 0 that it was written to the socket. payload must not change
// until Publish returns, nor after an error.
func (c *Client) Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error {
	if _, err := c.wait(ctx, func() paho.Token { return c.paho.Publish(topic, qos, retain, payload) }); err != nil {
		return fmt.Errorf("publish %s: %w", topic, err)
	}
	return nil
}

// wait starts an operation and waits for it, for ctx or for the connection's
// end. Starting can itself block for the write timeout, hence the goroutine.
func (c *Client) wait(ctx context.Context, start func() paho.Token) (paho.Token, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := c.Err(); err != nil {
		return nil, err
	}
	started := make(chan paho.Token, 1)
	go func() { started <- start() }() // ends within the write timeout
	var token paho.Token
	select {
	case token = <-started:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.done:
		return nil, c.err
	}
	select {
	case <-token.Done():
		return token, token.Error()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.done:
	}
	select {
	case <-token.Done(): // answered just before the end
		return token, token.Error()
	default:
		return nil, c.err
	}
}

// Close says goodbye, so that the broker sends no will, and ends the
// connection. It waits for OnMessage to return, and gives up waiting for
// either when ctx ends. Messages that OnMessage has not seen are dropped.
func (c *Client) Close(ctx context.Context) error {
	patience := 5 * time.Second
	if deadline, ok := ctx.Deadline(); ok {
		patience = min(patience, max(time.Until(deadline), 0))
	}
	c.finish(ErrClosed)
	c.paho.Disconnect(uint(patience.Milliseconds())) //nolint:gosec // between 0 and 5,000
	c.dialer.cut()
	idle := make(chan struct{})
	go func() {
		c.worker.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close the MQTT client: %w", ctx.Err())
	}
}
