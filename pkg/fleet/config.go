package fleet

import "time"

// Config is a device's desired configuration, with its version.
type Config struct {
	Version            int64          `json:"version"`
	HeartbeatIntervalS int            `json:"heartbeat_interval_s" doc:"Seconds between heartbeats, 1-86400"`
	HeartbeatTimeoutS  int            `json:"heartbeat_timeout_s" doc:"Seconds of silence beyond the interval before a device counts as offline, 5-3600"`
	DeployTimeoutS     int            `json:"deploy_timeout_s" doc:"Seconds one step of a deployment may take, 1-86400"`
	LogLevel           string         `json:"log_level" enum:"debug,info,warn,error"`
	Metadata           map[string]any `json:"metadata" doc:"Free keys; a bundle's scripts read those its manifest lists as KERNEX_CONFIG_<KEY>"`
}

// DeviceConfig is a Config with what the device made of it.
type DeviceConfig struct {
	Config
	UpdatedAt       time.Time `json:"updated_at"`
	UpdatedBy       string    `json:"updated_by"`
	ReportedVersion int64     `json:"reported_version"`
	Outcome         string    `json:"outcome" doc:"applied, rejected or reverted; empty before the first report"`
	Error           string    `json:"error"`
}

// ConfigVersion is one entry of a device's configuration history.
type ConfigVersion struct {
	Config
	Outcome   string    `json:"outcome"`
	Error     string    `json:"error"`
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
}

// DefaultConfig returns the configuration that a device has before anyone
// changes it; its version is 1.
func DefaultConfig() Config {
	return Config{Version: 1, HeartbeatIntervalS: 60, HeartbeatTimeoutS: 30, DeployTimeoutS: 300, LogLevel: "info", Metadata: map[string]any{}}
}

// Validate checks every bound; the agent applies the same rules again.
func (c Config) Validate() error {
	for _, f := range []struct {
		name         string
		v, low, high int
	}{
		{"heartbeat_interval_s", c.HeartbeatIntervalS, 1, 86400},
		{"heartbeat_timeout_s", c.HeartbeatTimeoutS, 5, 3600},
		{"deploy_timeout_s", c.DeployTimeoutS, 1, 86400},
	} {
		if f.v < f.low || f.v > f.high {
			return Errorf(CodeInvalid, "%s is %d, it must be between %d and %d", f.name, f.v, f.low, f.high)
		}
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		return Errorf(CodeInvalid, "log_level is %q, use debug, info, warn or error", c.LogLevel)
	}
	return validateMetadata("metadata", c.Metadata)
}

// ConfigPatch changes a Config: absent keys keep their values. Metadata, when
// present, replaces the whole map.
type ConfigPatch struct {
	HeartbeatIntervalS *int           `json:"heartbeat_interval_s,omitempty"`
	HeartbeatTimeoutS  *int           `json:"heartbeat_timeout_s,omitempty"`
	DeployTimeoutS     *int           `json:"deploy_timeout_s,omitempty"`
	LogLevel           *string        `json:"log_level,omitempty"`
	Metadata           map[string]any `json:"metadata,omitempty"`
}

// Apply returns c with the keys that p names; the version is left to the store.
func (p ConfigPatch) Apply(c Config) Config {
	set(&c.HeartbeatIntervalS, p.HeartbeatIntervalS)
	set(&c.HeartbeatTimeoutS, p.HeartbeatTimeoutS)
	set(&c.DeployTimeoutS, p.DeployTimeoutS)
	set(&c.LogLevel, p.LogLevel)
	if p.Metadata != nil {
		c.Metadata = p.Metadata
	}
	return c
}

func set[T any](dst, src *T) {
	if src != nil {
		*dst = *src
	}
}
