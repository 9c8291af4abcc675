package agent

import (
	"path/filepath"
	"strings"

	"github.com/kernexhq/kernex/agent/probe"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/logging"
)

// Config is everything an installation sets, as flags of kernex-agent; each
// also by environment as KERNEX_ and its name.
type Config struct {
	State       string `required:"" placeholder:"DIR" help:"State directory: key, journal, releases. Made 0700."`
	Broker      string `required:"" placeholder:"URL" help:"MQTT broker: tcp://HOST:PORT, or mqtts://HOST:PORT with TLS."`
	CA          string `name:"ca" placeholder:"FILE" help:"PEM file with the certificate authorities of broker and object store, instead of the system's."`
	EnrollToken string `placeholder:"TOKEN" help:"Claim token for the first start. Without one an operator has to approve the device."`
	DeviceType  string `placeholder:"NAME" help:"Kind of device, which bundles may ask for."`
	Serial      string `placeholder:"TEXT" help:"Serial number."`
	KeyType     string `default:"ed25519" enum:"ed25519,p256,rsa2048,rsa3072,rsa4096" help:"Type of the device key that the first start makes: ${enum}."`
	Root        string `default:"kernex/v1" placeholder:"TOPIC" help:"Topic root."`
	LogLevel    string `default:"info" enum:"debug,info,warn,error" help:"Log level before the orchestrator sets one: ${enum}."`

	CPUDegraded    float64 `name:"cpu-degraded" default:"95" placeholder:"PCT" help:"CPU use from which the device is degraded; 0: never."`
	CPUError       float64 `name:"cpu-error" default:"0" placeholder:"PCT" help:"CPU use that is an error; 0: never."`
	MemoryDegraded float64 `default:"90" placeholder:"PCT" help:"Memory use from which the device is degraded; 0: never."`
	MemoryError    float64 `default:"98" placeholder:"PCT" help:"Memory use that is an error; 0: never."`
	DiskDegraded   float64 `default:"90" placeholder:"PCT" help:"Use of the state directory's disk from which the device is degraded; 0: never."`
	DiskError      float64 `default:"98" placeholder:"PCT" help:"Use of that disk that is an error; 0: never."`

	KeepReleases    int   `default:"2" placeholder:"N" help:"Releases kept on disk, at least the current and the previous one."`
	MaxBundleBytes  int64 `default:"536870912" placeholder:"BYTES" help:"Largest bundle that is accepted; 4 times as much may come out of it."`
	AllowPrivileged bool  `help:"Let bundles whose manifest asks for it gain privileges (setuid programs)."`

	// Shim starts bundle programs; tests set it, whose binary is not the agent.
	Shim []string `kong:"-"`
	// Log says where lines go; its level is LogLevel.
	Log logging.Config `kong:"-"`
}

// limits are the health thresholds.
func (c Config) limits() probe.Limits {
	return probe.Limits{
		CPU:    probe.Limit{Degraded: c.CPUDegraded, Error: c.CPUError},
		Memory: probe.Limit{Degraded: c.MemoryDegraded, Error: c.MemoryError},
		Disk:   probe.Limit{Degraded: c.DiskDegraded, Error: c.DiskError},
	}
}

// validate checks what flags alone cannot, and makes State absolute.
func (c *Config) validate() error {
	if c.State == "" || c.Broker == "" {
		return fleet.Errorf(fleet.CodeInvalid, "--state and --broker are needed")
	}
	dir, err := filepath.Abs(c.State)
	if err != nil {
		return fleet.Errorf(fleet.CodeInvalid, "--state %q: %w", c.State, err)
	}
	c.State = dir
	for name, v := range map[string]float64{
		"cpu-degraded": c.CPUDegraded, "cpu-error": c.CPUError, "memory-degraded": c.MemoryDegraded,
		"memory-error": c.MemoryError, "disk-degraded": c.DiskDegraded, "disk-error": c.DiskError,
	} {
		if v < 0 || v > 100 {
			return fleet.Errorf(fleet.CodeInvalid, "--%s is %v, it must be between 0 and 100", name, v)
		}
	}
	if c.KeepReleases != 0 && (c.KeepReleases < 2 || c.KeepReleases > 32) {
		return fleet.Errorf(fleet.CodeInvalid, "--keep-releases is %d, it must be between 2 and 32", c.KeepReleases)
	}
	if c.MaxBundleBytes < 0 {
		return fleet.Errorf(fleet.CodeInvalid, "--max-bundle-bytes is %d", c.MaxBundleBytes)
	}
	if strings.ContainsAny(c.Root, "+#\x00") {
		return fleet.Errorf(fleet.CodeInvalid, "--root %q: a topic without wildcards is needed", c.Root)
	}
	return fleet.Registration{DeviceType: c.DeviceType, Serial: c.Serial}.Validate()
}
