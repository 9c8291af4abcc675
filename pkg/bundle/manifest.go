package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"strconv"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// The names that the format reserves at the top of every bundle.
const (
	ManifestName  = "manifest.json"
	SignatureName = "manifest.json.minisig"
)

// SchemaVersion is the only value of the manifest's schema key so far.
const SchemaVersion = 1

// Manifest is the content of manifest.json after defaults. Every key that has
// a bound is checked by ParseManifest; docs/bundle-spec.md lists them.
type Manifest struct {
	Schema      int    `json:"schema"`
	Name        string `json:"name"`
	Version     string `json:"version"` // SemVer 2.0
	Description string `json:"description,omitempty"`

	// Counter orders releases against downgrades; 0 means none. MinCounter is
	// the floor that this release sets once it is committed. NotAfter is the
	// last moment at which the release may be installed.
	Counter    int64      `json:"counter,omitempty"`
	MinCounter int64      `json:"min_counter,omitempty"`
	NotAfter   *time.Time `json:"not_after,omitempty"`

	// Arch (GOARCH names) and DeviceTypes are the devices that the bundle is
	// for; empty means all.
	Arch            []string `json:"arch,omitempty"`
	DeviceTypes     []string `json:"device_types,omitempty"`
	MinAgentVersion string   `json:"min_agent_version,omitempty"`

	Files    []File  `json:"files,omitempty"`
	Deploy   Script  `json:"deploy"`
	Rollback *Script `json:"rollback,omitempty"` // nil: deploy of the version returned to
	Health   *Health `json:"health,omitempty"`   // nil: healthy once deploy has succeeded and run has started
	Run      *Run    `json:"run,omitempty"`      // nil: nothing keeps running

	Privileged bool     `json:"privileged,omitempty"`
	ConfigKeys []string `json:"config_keys,omitempty"`
}

// File pins one file of the bundle. Path is relative with forward slashes.
type File struct {
	Path   string `json:"path"`
	Mode   string `json:"mode"` // four octal digits within 0755
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// Perm returns the permission bits of Mode, 0 if it is none (which
// ParseManifest refuses).
func (f File) Perm() fs.FileMode {
	n, err := strconv.ParseUint(f.Mode, 8, 32)
	if err != nil || n > 0o777 {
		return 0
	}
	return fs.FileMode(n)
}

// Script is a program of the bundle that runs to its end.
type Script struct {
	Script   string `json:"script"`    // path of a file in the bundle, executable
	TimeoutS int    `json:"timeout_s"` // seconds, default 300
}

// Health says how the agent decides that the release works. Exactly one of
// HTTP, Script and TCP is set.
type Health struct {
	HTTP         string `json:"http,omitempty"`
	Script       string `json:"script,omitempty"`
	TCP          string `json:"tcp,omitempty"`
	IntervalS    int    `json:"interval_s"`
	TimeoutS     int    `json:"timeout_s"` // of one probe
	Successes    int    `json:"successes"` // in a row
	WindowS      int    `json:"window_s"`  // from the switch until the verdict
	NeedsNetwork bool   `json:"needs_network,omitempty"`
}

// Restart policies of Run.
const (
	RestartAlways    = "always"
	RestartOnFailure = "on-failure"
	RestartNever     = "never"
)

// Run is the bundle's long-running program; the agent starts, watches and
// stops it.
type Run struct {
	Command      []string          `json:"command"` // no shell; ./x is a file of the bundle
	Restart      string            `json:"restart"`
	MaxRestarts  int               `json:"max_restarts"`
	StopTimeoutS int               `json:"stop_timeout_s"` // from SIGTERM to SIGKILL
	Env          map[string]string `json:"env,omitempty"`
}

// UnmarshalJSON reads a file entry, refusing unknown keys.
func (f *File) UnmarshalJSON(data []byte) error {
	type plain File
	return decodeObject(data, "files[]", (*plain)(f))
}

// UnmarshalJSON fills in defaults and refuses unknown keys.
func (s *Script) UnmarshalJSON(data []byte) error {
	type plain Script
	*s = Script{TimeoutS: 300}
	return decodeObject(data, "deploy or rollback", (*plain)(s))
}

// UnmarshalJSON fills in defaults and refuses unknown keys.
func (h *Health) UnmarshalJSON(data []byte) error {
	type plain Health
	*h = Health{IntervalS: 2, TimeoutS: 5, Successes: 2, WindowS: 20}
	return decodeObject(data, "health", (*plain)(h))
}

// UnmarshalJSON fills in defaults and refuses unknown keys.
func (r *Run) UnmarshalJSON(data []byte) error {
	type plain Run
	*r = Run{Restart: RestartAlways, MaxRestarts: 5, StopTimeoutS: 10}
	return decodeObject(data, "run", (*plain)(r))
}

// ParseManifest reads and checks the manifest of a built bundle: strict JSON,
// known keys only, every value within its bounds, every script among files and
// executable. The error names the key and the value.
func ParseManifest(data []byte) (*Manifest, error) {
	m, err := decodeManifest(data)
	if err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, fleet.Errorf(fleet.CodeBadBundle, "%s: %v", ManifestName, err)
	}
	return m, nil
}

// ReleaseID returns the release id of a manifest: the lower-case hex SHA-256
// of its exact bytes. Since the manifest pins every file, so does the id.
func ReleaseID(manifest []byte) string {
	sum := sha256.Sum256(manifest)
	return hex.EncodeToString(sum[:])
}

// encode returns the bytes that Build writes: every default spelled out, so
// that a release means the same to an agent with other defaults.
func (m *Manifest) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return b.Bytes(), nil
}

// file returns the entry with that path, or nil.
func (m *Manifest) file(path string) *File {
	for i := range m.Files {
		if m.Files[i].Path == path {
			return &m.Files[i]
		}
	}
	return nil
}
