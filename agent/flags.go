package agent

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/kernexhq/kernex/pkg/buildinfo"
	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// ErrShown says that Parse has answered --help or --version itself.
var ErrShown = errors.New("shown")

// keyTypes are what --key-type takes.
var keyTypes = []string{identity.KindEd25519, identity.KindP256, identity.KindRSA2048, identity.KindRSA3072, identity.KindRSA4096}

// Parse reads the flags of kernex-agent, args without the program's name. Each
// is also taken from the environment, --log-level as KERNEX_LOG_LEVEL; the flag
// wins. The standard flag package costs a fifth of the binary less than the
// library that the other programs use.
func Parse(args []string, getenv func(string) string, out io.Writer) (Config, error) {
	var c Config
	var version bool
	f := flag.NewFlagSet("kernex-agent", flag.ContinueOnError)
	f.SetOutput(io.Discard) // errors are returned
	f.StringVar(&c.State, "state", "", "`DIR` of key, journal and releases; made 0700 (required)")
	f.StringVar(&c.Broker, "broker", "", "`URL` of the MQTT broker, tcp://HOST:PORT or mqtts://HOST:PORT (required)")
	f.StringVar(&c.EnrollBroker, "enroll-broker", "", "`URL` where to enrol, on brokers that ask devices for a client certificate everywhere else; default: --broker")
	f.StringVar(&c.CA, "ca", "", "PEM `FILE` with the certificate authorities of broker and object store, instead of the system's")
	f.StringVar(&c.EnrollToken, "enroll-token", "", "claim `TOKEN` for the first start; without one an operator has to approve the device")
	f.StringVar(&c.DeviceType, "device-type", "", "`NAME` of the kind of device, which bundles may ask for")
	f.StringVar(&c.Serial, "serial", "", "serial number, any `TEXT`")
	f.StringVar(&c.KeyType, "key-type", identity.KindEd25519, "`TYPE` of the key that the first start makes: "+strings.Join(keyTypes, ", "))
	f.StringVar(&c.Root, "root", protocol.DefaultRoot, "`TOPIC` root")
	f.StringVar(&c.LogLevel, "log-level", "info", "`LEVEL` before the orchestrator sets one: debug, info, warn, error")
	f.Float64Var(&c.CPUDegraded, "cpu-degraded", 95, "`PERCENT` of CPU use from which the device is degraded; 0: never")
	f.Float64Var(&c.CPUError, "cpu-error", 0, "`PERCENT` of CPU use that is an error; 0: never")
	f.Float64Var(&c.MemoryDegraded, "memory-degraded", 90, "`PERCENT` of memory use from which the device is degraded; 0: never")
	f.Float64Var(&c.MemoryError, "memory-error", 98, "`PERCENT` of memory use that is an error; 0: never")
	f.Float64Var(&c.DiskDegraded, "disk-degraded", 90, "`PERCENT` of the state directory's disk from which the device is degraded; 0: never")
	f.Float64Var(&c.DiskError, "disk-error", 98, "`PERCENT` of that disk that is an error; 0: never")
	f.IntVar(&c.KeepReleases, "keep-releases", 2, "`N` releases stay on disk, at least the current and the previous one")
	f.Int64Var(&c.MaxBundleBytes, "max-bundle-bytes", bundle.DefaultMaxBytes, "largest bundle that is accepted, in `BYTES`; 4 times as much may come out of it")
	f.BoolVar(&c.AllowPrivileged, "allow-privileged", false, "let bundles whose manifest asks for it gain privileges (setuid programs)")
	f.BoolVar(&version, "version", false, "show the version and exit")

	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		usage(f, out)
		return c, ErrShown
	case err != nil:
		return c, fmt.Errorf("%w; see kernex-agent --help", err)
	case version:
		_, _ = fmt.Fprintln(out, buildinfo.String())
		return c, ErrShown
	case f.NArg() > 0:
		return c, fmt.Errorf("unexpected argument %q; see kernex-agent --help", f.Arg(0))
	}
	given := map[string]bool{}
	f.Visit(func(g *flag.Flag) { given[g.Name] = true })
	f.VisitAll(func(g *flag.Flag) {
		v := getenv(envOf(g.Name))
		if given[g.Name] || v == "" || g.Name == "version" || err != nil {
			return
		}
		if e := f.Set(g.Name, v); e != nil {
			err = fmt.Errorf("%s=%q: %w", envOf(g.Name), v, e)
		}
	})
	c.NotifySocket, c.Watchdog = notifySettings(getenv)
	if err == nil && !slices.Contains(keyTypes, c.KeyType) {
		err = fmt.Errorf("--key-type is %q, use %s", c.KeyType, strings.Join(keyTypes, ", "))
	}
	return c, err
}

func envOf(name string) string { return "KERNEX_" + envName(name) }

func usage(f *flag.FlagSet, out io.Writer) {
	text := "Usage: kernex-agent --state DIR --broker URL [flags]\n\nConnects this device to a Kernex fleet and runs its bundles.\n\n"
	f.VisitAll(func(g *flag.Flag) {
		arg, help := flag.UnquoteUsage(g)
		text += fmt.Sprintf("  --%s %s\n        %s", g.Name, arg, help)
		if g.DefValue != "" && g.DefValue != "false" {
			text += "; default " + g.DefValue
		}
		if g.Name != "version" {
			text += " ($" + envOf(g.Name) + ")"
		}
		text += "\n"
	})
	_, _ = io.WriteString(out, text)
}
