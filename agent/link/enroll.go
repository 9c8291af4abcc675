package link

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/mqttclient"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// replyWait is how long one enrolment message is waited for. The orchestrator's
// challenge is valid for 60 s, the connection for 30.
const replyWait = 10 * time.Second

// Endpoint is where and how to connect.
type Endpoint struct {
	Broker       string
	EnrollBroker string // where to enrol; "" is Broker
	TLS          *tls.Config
	Topics       protocol.Topics
	Log          zerolog.Logger
	Clock        func() time.Time // the device's, which may be wrong; nil is time.Now
}

func (e Endpoint) now() time.Time {
	if e.Clock == nil {
		return time.Now()
	}
	return e.Clock()
}

// Enroll registers the device until the orchestrator has answered: with an
// identity, which may still be pending, or with the refusal that nothing cures:
// the type of the key (fleet.CodeUnsupported). Other refusals may be cured by an
// operator and are tried again, like failures of the network, only less often.
// Repeating is safe: the same key always gets the same id.
func (e Endpoint) Enroll(ctx context.Context, key identity.PrivateKey, req protocol.EnrollRequest) (protocol.EnrollReply, error) {
	var wait backoff
	for {
		reply, err := e.enrollOnce(ctx, key, req)
		limit := maxWait
		switch code := fleet.ErrorCode(err); {
		case err == nil:
			return reply, nil
		case ctx.Err() != nil:
			return reply, ctx.Err()
		case code == fleet.CodeUnsupported:
			return reply, err
		case code == fleet.CodeUnauthorized || code == fleet.CodeForbidden || code == fleet.CodeInvalid:
			limit = maxWaitAuth
		}
		d := wait.next(limit)
		e.Log.Warn().Err(err).Dur("retry_in_ms", d).Msg("enrolment failed")
		if !pause(ctx, d) {
			return reply, ctx.Err()
		}
	}
}

func (e Endpoint) enrollOnce(ctx context.Context, key identity.PrivateKey, req protocol.EnrollRequest) (protocol.EnrollReply, error) {
	nonce, broker := random(), e.EnrollBroker
	if broker == "" {
		broker = e.Broker
	}
	replies := make(chan []byte, 4)
	client, err := mqttclient.Dial(ctx, mqttclient.Options{
		Broker: broker, TLS: e.TLS, Username: "enroll", ClientID: nonce,
		OnMessage: func(_ string, payload []byte) {
			select {
			case replies <- payload:
			default: // more replies than questions
			}
		},
	})
	if err != nil {
		return protocol.EnrollReply{}, err
	}
	defer closeClient(client)
	if err := client.Subscribe(ctx, e.Topics.EnrollReply(nonce), 1); err != nil {
		return protocol.EnrollReply{}, err
	}
	ask := func() (reply protocol.EnrollReply, err error) {
		payload, err := json.Marshal(req)
		if err != nil {
			return reply, fmt.Errorf("encode the enrolment: %w", err)
		}
		wait, cancel := context.WithTimeout(ctx, replyWait)
		defer cancel()
		if err := client.Publish(wait, e.Topics.EnrollRequest(nonce), payload, 1, false); err != nil {
			return reply, err
		}
		select {
		case payload := <-replies:
			err = protocol.Decode(protocol.KindEnrollReply, payload, &reply)
		case <-client.Done():
			err = client.Err()
		case <-wait.Done():
			err = fleet.Errorf(fleet.CodeUnavailable, "no reply to the enrolment within %s", replyWait)
		}
		if err == nil && reply.Error != nil {
			err = fleet.Errorf(reply.Error.Code, "%s", reply.Error.Message)
		}
		return reply, err
	}
	reply, err := ask()
	if err != nil || reply.DeviceID != "" {
		return reply, err
	}
	sig, err := identity.SignEnroll(key, reply.Challenge, nonce)
	if err != nil {
		return reply, err
	}
	req.Challenge, req.Signature = reply.Challenge, base64.RawURLEncoding.EncodeToString(sig)
	if reply, err = ask(); err != nil {
		return reply, err
	}
	if !fleet.ValidDeviceID(reply.DeviceID) {
		return reply, fleet.Errorf(fleet.CodeUnavailable, "the reply to the enrolment has the device id %q", reply.DeviceID)
	}
	return reply, nil
}

// askTime logs in as clock and takes the server's time once.
func (e Endpoint) askTime(ctx context.Context) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, replyWait)
	defer cancel()
	times := make(chan int64, 1)
	client, err := mqttclient.Dial(ctx, mqttclient.Options{
		Broker: e.Broker, TLS: e.TLS, Username: "clock", ClientID: "clock-" + random(),
		OnMessage: func(_ string, payload []byte) {
			var t protocol.Time
			if json.Unmarshal(payload, &t) != nil || t.Time <= 0 {
				return
			}
			select {
			case times <- t.Time:
			default:
			}
		},
	})
	if err != nil {
		return time.Time{}, err
	}
	defer closeClient(client)
	if err := client.Subscribe(ctx, e.Topics.Time(), 0); err != nil {
		return time.Time{}, err
	}
	select {
	case t := <-times:
		return time.Unix(t, 0), nil
	case <-client.Done():
		return time.Time{}, client.Err()
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("wait for the server's time: %w", ctx.Err())
	}
}

// closeClient says goodbye even when the caller's context has ended.
func closeClient(c *mqttclient.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = c.Close(ctx) // the connection is cut either way
}

// random returns 128 random bits in hex: an enrolment nonce.
func random() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: it aborts the program instead
	return hex.EncodeToString(b[:])
}
