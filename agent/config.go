package agent

import (
	"path/filepath"
	"strings"
	"time"

	"github.com/kernexhq/kernex/agent/probe"
	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/logging"
)

// Config is everything an installation sets; Parse describes each flag.
type Config struct {
	State        string // directory of key, journal and releases
	Broker       string // URL
	EnrollBroker string // URL of the listener for enrolment; "" is Broker
	CA           string // PEM file; "" is the system's authorities
	EnrollToken  string
	DeviceType   string
	Serial       string
	KeyType      string // of identity.Generate
	Root         string // topic root
	LogLevel     string // before the orchestrator sets one

	// Percentages from which the device is degraded or in error; 0 is never.
	CPUDegraded, CPUError       float64
	MemoryDegraded, MemoryError float64
	DiskDegraded, DiskError     float64

	KeepReleases    int   // on disk, the current one included; 0 is 2
	MaxBundleBytes  int64 // 0 is bundle.DefaultMaxBytes
	AllowPrivileged bool  // let bundles that ask for it gain privileges

	// Clock is the device's wall clock; tests set it. nil is time.Now.
	Clock func() time.Time
	// RevertAfter is how long a new configuration may keep the device from
	// connecting; tests shorten it. 0 is 5 minutes.
	RevertAfter time.Duration
	// Stall is how long a download may stay below the minimum rate before its
	// connection is given up; tests shorten it. 0 is a minute.
	Stall time.Duration
	// Files is how files are changed; tests set it, to record or fail each call.
	// nil is the plain file system.
	Files *durable.FS
	// Retry is the wait before a failed update step is tried again; 0 is 10 s.
	Retry        time.Duration
	NotifySocket string        // systemd's, to say READY=1 and so on; "" is nobody
	Watchdog     time.Duration // systemd restarts the agent after such a silence; 0 is never

	// Shim starts bundle programs; tests set it, whose binary is not the agent.
	Shim []string
	// Log says where lines go; its level is LogLevel.
	Log logging.Config
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
