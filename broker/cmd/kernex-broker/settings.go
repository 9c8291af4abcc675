package main

import (
	"github.com/kernexhq/kernex/pkg/config"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// settings are the flags; each is also a KERNEX_* variable and a key of the
// settings file.
type settings struct {
	config.File

	MQTT       string `name:"mqtt" placeholder:"ADDR" help:"Address for MQTT without TLS; only on this machine unless --allow-plain."`
	MQTTS      string `name:"mqtts" placeholder:"ADDR" help:"Address for MQTT over TLS."`
	TLSCert    string `name:"tls-cert" placeholder:"FILE" help:"Certificate chain for --mqtts, PEM. Changed files are read again within seconds."`
	TLSKey     string `name:"tls-key" placeholder:"FILE" help:"Its private key, PEM, mode 0600."`
	AllowPlain bool   `help:"Allow --mqtt on addresses that other machines reach: passwords cross the network readable."`

	Authorizer   []string `placeholder:"URL" help:"Internal listener of an orchestrator, http://HOST:PORT; several with commas between."`
	AuthorizerCA string   `name:"authorizer-ca" placeholder:"FILE" help:"Certificate authorities for https:// authorizers, PEM, instead of the system's."`
	SecretFile   string   `placeholder:"FILE" help:"Secret shared with the orchestrators, mode 0600."`

	HTTP       string `name:"http" default:"127.0.0.1:8083" placeholder:"ADDR" help:"Address of /livez, /readyz and /metrics; none: no such listener."`
	Root       string `default:"kernex/v1" placeholder:"TOPIC" help:"Topic root."`
	MaxClients int    `default:"0" placeholder:"N" help:"Open sockets at most; 0: nine tenths of the descriptor limit."`
	LogLevel   string `default:"info" enum:"debug,info,warn,error" help:"debug, info, warn or error."`
	LogFormat  string `default:"auto" enum:"auto,json,console" help:"auto, json or console; auto is console on a terminal."`

	Serve       struct{} `cmd:"" default:"1" help:"Run the broker (the default)."`
	Healthcheck struct{} `cmd:"" help:"Ask the broker at --http whether it is ready; status 1 if not."`
	Version     struct{} `cmd:"" help:"Print the version."`
}

// check refuses settings that cannot work, before anything is opened.
func (s *settings) check() error {
	if s.MQTT == "" && s.MQTTS == "" {
		return fleet.Errorf(fleet.CodeInvalid, "give --mqtts ADDR, or --mqtt ADDR for MQTT without TLS")
	}
	if s.HTTP == "none" {
		s.HTTP = ""
	}
	for setting, addr := range map[string]string{"--mqtt": s.MQTT, "--mqtts": s.MQTTS, "--http": s.HTTP} {
		if addr != "" {
			if err := config.Address(setting, addr); err != nil {
				return err
			}
		}
	}
	switch {
	case s.MQTT != "" && !config.Loopback(s.MQTT) && !s.AllowPlain:
		return fleet.Errorf(fleet.CodeInvalid, "--mqtt %s would carry passwords over the network unencrypted: use --mqtts, or --allow-plain where the network is trusted", s.MQTT)
	case s.MQTTS != "" && (s.TLSCert == "" || s.TLSKey == ""):
		return fleet.Errorf(fleet.CodeInvalid, "--mqtts needs --tls-cert and --tls-key")
	case s.MQTTS == "" && (s.TLSCert != "" || s.TLSKey != ""):
		return fleet.Errorf(fleet.CodeInvalid, "--tls-cert and --tls-key are for --mqtts, which is not given")
	case len(s.Authorizer) == 0:
		return fleet.Errorf(fleet.CodeInvalid, "--authorizer is needed: the internal listener of at least one orchestrator")
	case s.SecretFile == "":
		return fleet.Errorf(fleet.CodeInvalid, "--secret-file is needed: the secret shared with the orchestrators")
	case s.MaxClients < 0:
		return fleet.Errorf(fleet.CodeInvalid, "--max-clients is %d", s.MaxClients)
	}
	return protocol.CheckRoot(s.Root)
}
