package main

import (
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/config"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// settings are the flags; each is also a KERNEX_* variable and a key of the
// settings file.
type settings struct {
	config.File

	HTTP         string   `name:"http" default:"127.0.0.1:8080" placeholder:"ADDR" help:"Address of the admin API, /livez, /readyz and /metrics."`
	TrustedProxy []string `placeholder:"PREFIX" help:"Peers whose X-Forwarded-For is believed, such as 10.0.0.0/8."`

	Internal     string `placeholder:"ADDR" help:"Address on which kernex-broker asks about logins; none without it."`
	InternalCert string `placeholder:"FILE" help:"Certificate chain for --internal, PEM: https instead of http."`
	InternalKey  string `placeholder:"FILE" help:"Its private key, PEM, mode 0600."`
	SecretFile   string `placeholder:"FILE" help:"Secret shared with the brokers, mode 0600."`

	Postgres       string        `placeholder:"DSN" help:"Database, as a URL or key=value. Through a pooler add binary_parameters=yes."`
	PostgresDirect string        `placeholder:"DSN" help:"The same database past the pooler, for migrations and notifications. Without it a pooler means polling every 5 s."`
	PostgresConns  int           `default:"20" placeholder:"N" help:"Database connections of this replica at most."`
	StartWait      time.Duration `default:"60s" placeholder:"TIME" help:"How long to wait at the start for a database and an object store that do not answer yet."`

	S3Endpoint      string `name:"s3-endpoint" env:"KERNEX_S3_ENDPOINT" placeholder:"URL" help:"Object store as this program reaches it."`
	S3PublicURL     string `name:"s3-public-url" env:"KERNEX_S3_PUBLIC_URL" placeholder:"URL" help:"Object store as devices reach it; default: the endpoint."`
	S3Region        string `name:"s3-region" env:"KERNEX_S3_REGION" default:"us-east-1" placeholder:"NAME" help:"Region, part of each signature."`
	S3Bucket        string `name:"s3-bucket" env:"KERNEX_S3_BUCKET" default:"kernex" placeholder:"NAME" help:"Bucket of the bundles; made if it is missing."`
	S3AccessKey     string `name:"s3-access-key" env:"KERNEX_S3_ACCESS_KEY" placeholder:"ID" help:"Access key."`
	S3SecretKeyFile string `name:"s3-secret-key-file" env:"KERNEX_S3_SECRET_KEY_FILE" placeholder:"FILE" help:"File with its secret, mode 0600."`
	S3Insecure      bool   `name:"s3-insecure" env:"KERNEX_S3_INSECURE" help:"Allow http:// for the object store."`

	Broker             string `placeholder:"URL" help:"MQTT broker: mqtts://HOST:PORT, or tcp://HOST:PORT without TLS."`
	BrokerCA           string `name:"broker-ca" placeholder:"FILE" help:"Certificate authorities of the broker, PEM, instead of the system's."`
	BrokerUsername     string `placeholder:"NAME" help:"User on a broker that is not kernex-broker, which needs none: this program makes its own login there."`
	BrokerPasswordFile string `placeholder:"FILE" help:"Its password, mode 0600; read again at each connection."`
	BrokerCert         string `placeholder:"FILE" help:"Client certificate for such a broker, PEM."`
	BrokerKey          string `placeholder:"FILE" help:"Its private key, PEM, mode 0600."`
	BrokerConnections  int    `default:"8" placeholder:"N" help:"Connections to the broker, which share the load."`

	CommandKeyFile     string `placeholder:"FILE" help:"Key that signs commands, mode 0600; made if it is missing. Every replica needs the same: devices pin it."`
	NextCommandKeyFile string `placeholder:"FILE" help:"Key that is to take the place of --command-key-file, mode 0600; made if it is missing: devices come to pin it one by one. /readyz says when all have; then give it as --command-key-file instead."`
	AdminTokenFile     string `placeholder:"FILE" help:"Where the first admin token is written; without it none is made."`

	CAKeyFile      string        `name:"ca-key-file" placeholder:"FILE" help:"Key of a CA that issues client certificates to devices, for brokers that ask for them, mode 0600; made if it is missing. Every replica needs the same. Without it none are issued."`
	CACertFile     string        `name:"ca-cert-file" placeholder:"FILE" help:"Certificate of that CA, PEM; made if it is missing. The broker has to trust it."`
	DeviceCertLife time.Duration `default:"2160h" placeholder:"TIME" help:"Life of a device's certificate, which it renews after two thirds."`

	Root      string      `default:"kernex/v1" placeholder:"TOPIC" help:"Topic root."`
	MaxBundle config.Size `default:"512MiB" placeholder:"SIZE" help:"Largest bundle accepted."`
	LogLevel  string      `default:"info" enum:"debug,info,warn,error" help:"debug, info, warn or error."`
	LogFormat string      `default:"auto" enum:"auto,json,console" help:"auto, json or console; auto is console on a terminal."`

	Serve       struct{} `cmd:"" default:"1" help:"Run a replica (the default). Migrates the database first; replicas take turns."`
	Migrate     struct{} `cmd:"" help:"Bring the database to this version's schema and end."`
	Healthcheck struct{} `cmd:"" help:"Ask the replica at --http whether it is ready; status 1 if not."`
	Version     struct{} `cmd:"" help:"Print the version."`
}

// check refuses settings that cannot work, before anything is opened.
func (s *settings) check() error {
	if err := s.checkDatabase(); err != nil {
		return err
	}
	for setting, v := range map[string]string{
		"--s3-endpoint": s.S3Endpoint, "--s3-access-key": s.S3AccessKey, "--s3-secret-key-file": s.S3SecretKeyFile,
		"--broker": s.Broker, "--command-key-file": s.CommandKeyFile,
	} {
		if v == "" {
			return fleet.Errorf(fleet.CodeInvalid, "%s is needed", setting)
		}
	}
	if err := config.Address("--http", s.HTTP); err != nil {
		return err
	}
	if s.Internal != "" {
		if err := config.Address("--internal", s.Internal); err != nil {
			return err
		}
	}
	switch {
	case (s.Internal == "") != (s.SecretFile == ""):
		return fleet.Errorf(fleet.CodeInvalid, "--internal and --secret-file belong together: give both or none")
	case (s.InternalCert == "") != (s.InternalKey == "") || s.InternalCert != "" && s.Internal == "":
		return fleet.Errorf(fleet.CodeInvalid, "--internal-cert and --internal-key belong together, with --internal")
	case (s.CAKeyFile == "") != (s.CACertFile == ""):
		return fleet.Errorf(fleet.CodeInvalid, "--ca-key-file and --ca-cert-file belong together: give both or none")
	case s.PostgresConns < 4 || s.PostgresConns > 1000:
		return fleet.Errorf(fleet.CodeInvalid, "--postgres-conns is %d, it must be between 4 and 1000", s.PostgresConns)
	case s.StartWait < 0 || s.StartWait > time.Hour:
		return fleet.Errorf(fleet.CodeInvalid, "--start-wait is %v, it must be between 0s and 1h", s.StartWait)
	}
	if err := s.checkBroker(); err != nil {
		return err
	}
	if _, err := s.proxies(); err != nil {
		return err
	}
	return protocol.CheckRoot(s.Root)
}

func (s *settings) checkDatabase() error {
	if s.Postgres == "" {
		return fleet.Errorf(fleet.CodeInvalid, "--postgres is needed")
	}
	return nil
}

func (s *settings) checkBroker() error {
	u, err := url.Parse(s.Broker)
	if err != nil || u.Hostname() == "" || u.User != nil {
		return fleet.Errorf(fleet.CodeInvalid, "--broker needs a host and takes no user, such as mqtts://broker.example:8883")
	}
	secure := true
	switch u.Scheme {
	case "tcp", "mqtt":
		secure = false
	case "mqtts", "ssl", "tls":
	default:
		return fleet.Errorf(fleet.CodeInvalid, "--broker has scheme %q, use mqtts or tcp", u.Scheme)
	}
	switch {
	case (s.BrokerCert == "") != (s.BrokerKey == ""):
		return fleet.Errorf(fleet.CodeInvalid, "--broker-cert and --broker-key belong together: give both or none")
	case !secure && (s.BrokerCert != "" || s.BrokerCA != ""):
		return fleet.Errorf(fleet.CodeInvalid, "--broker %s has no TLS, for which --broker-ca and --broker-cert are: use mqtts", s.Broker)
	case s.BrokerPasswordFile != "" && s.BrokerUsername == "":
		return fleet.Errorf(fleet.CodeInvalid, "--broker-password-file needs --broker-username")
	case s.BrokerUsername != "" && s.BrokerPasswordFile == "" && s.BrokerCert == "":
		return fleet.Errorf(fleet.CodeInvalid, "--broker-username needs --broker-password-file or --broker-cert")
	case s.BrokerConnections < 1 || s.BrokerConnections > 256:
		return fleet.Errorf(fleet.CodeInvalid, "--broker-connections is %d, it must be between 1 and 256", s.BrokerConnections)
	}
	return nil
}

func (s *settings) proxies() ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range s.TrustedProxy {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); err != nil && aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, fleet.Errorf(fleet.CodeInvalid, "--trusted-proxy %q is no address and no prefix, such as 10.0.0.0/8", text)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

// pooled says whether the first connection string leads to a pooler.
func (s *settings) pooled() bool {
	return s.PostgresDirect != "" || strings.Contains(s.Postgres, "binary_parameters=yes")
}

// dsn is the connection string for everything but migrations and notifications.
// A pooler gives each statement another server connection, so none may be
// prepared in one step and used in the next.
func (s *settings) dsn() string {
	if !s.pooled() || strings.Contains(s.Postgres, "binary_parameters=") {
		return s.Postgres
	}
	if !strings.HasPrefix(s.Postgres, "postgres://") && !strings.HasPrefix(s.Postgres, "postgresql://") {
		return s.Postgres + " binary_parameters=yes"
	}
	separator := "?"
	if strings.Contains(s.Postgres, "?") {
		separator = "&"
	}
	return s.Postgres + separator + "binary_parameters=yes"
}
