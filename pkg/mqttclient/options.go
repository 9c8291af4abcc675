package mqttclient

import (
	"crypto/tls"
	"net"
	"net/url"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Options say how to connect. The zero value of each time means its default.
type Options struct {
	Broker   string // tcp:// or mqtt:// (port 1883), mqtts://, ssl:// or tls:// (port 8883)
	ClientID string
	Username string
	Password string
	TLS      *tls.Config // for mqtts; nil: the system's roots. ServerName defaults to the broker's host

	WillTopic   string // "": no will
	WillPayload []byte
	WillQoS     byte

	// OnMessage gets every message, one at a time and in the order of arrival.
	// It may block and may call Publish and Subscribe, but not Close. Up to
	// Queue messages wait for it; while it is that far behind, the newest
	// message is dropped and counted by Dropped, although the broker has its
	// acknowledgement: a PUBACK never means more than "arrived".
	OnMessage func(topic string, payload []byte)
	Queue     int // default 256

	KeepAlive      time.Duration // default 30 s; whole seconds
	ConnectTimeout time.Duration // for the socket, TLS and CONNACK together; default 10 s
	WriteTimeout   time.Duration // for one write, then the connection is lost; default 10 s
}

func (o *Options) setDefaults() {
	if o.Queue == 0 {
		o.Queue = 256
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&o.KeepAlive, 30 * time.Second}, {&o.ConnectTimeout, 10 * time.Second}, {&o.WriteTimeout, 10 * time.Second}} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
}

// endpoint returns the address of a broker URL and its TLS configuration, nil
// for plain TCP.
func (o *Options) endpoint() (addr string, conf *tls.Config, err error) {
	u, err := url.Parse(o.Broker)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return "", nil, fleet.Errorf(fleet.CodeInvalid, "the broker's URL needs a host and takes no user, such as mqtts://broker.example:8883")
	}
	port := u.Port()
	switch u.Scheme {
	case "tcp", "mqtt":
		if port == "" {
			port = "1883"
		}
	case "mqtts", "ssl", "tls":
		if port == "" {
			port = "8883"
		}
		conf = &tls.Config{}
		if o.TLS != nil {
			conf = o.TLS.Clone()
		}
		conf.MinVersion = max(conf.MinVersion, tls.VersionTLS12)
		if conf.ServerName == "" {
			conf.ServerName = u.Hostname()
		}
	default:
		return "", nil, fleet.Errorf(fleet.CodeInvalid, "the broker's URL has scheme %q, use tcp, mqtt, mqtts, ssl or tls", u.Scheme)
	}
	return net.JoinHostPort(u.Hostname(), port), conf, nil
}
