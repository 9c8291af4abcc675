package fleet

import (
	"encoding/json"
	"time"
)

// Bundle is one uploaded bundle. The archive lives in the object store under
// ObjectKey; Release pins its content, Checksum its bytes.
type Bundle struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Version   string          `json:"version"`
	Release   string          `json:"release" doc:"SHA-256 of manifest.json, hex: pins every file"`
	Checksum  string          `json:"checksum_sha256" doc:"SHA-256 of the archive, hex"`
	Size      int64           `json:"size" doc:"Bytes of the archive"`
	Expanded  int64           `json:"expanded" doc:"Bytes of its files"`
	SignedBy  string          `json:"signed_by" doc:"Release key id; empty: unsigned, or by no key that counted at the time"`
	Signature string          `json:"-"` // minisign over the manifest's bytes, by SignedBy
	Manifest  json.RawMessage `json:"manifest,omitempty"`
	PartSize  int64           `json:"part_size"`
	Parts     []string        `json:"-"` // SHA-256 of each part of PartSize bytes
	Files     int             `json:"-"` // how many it has; only in a Command
	ObjectKey string          `json:"-"`
	CreatedAt time.Time       `json:"created_at"`
	CreatedBy string          `json:"created_by"`
}

// PartSize returns the size of the parts whose digests a deploy command
// carries: 1 MiB or the power of two that keeps them at 64 or fewer, because a
// command may be 16 KiB.
func PartSize(size int64) int64 {
	part := int64(1 << 20)
	for size > 64*part {
		part *= 2
	}
	return part
}

// HistoryEntry is one line of what a device went through.
type HistoryEntry struct {
	BundleID     string    `json:"bundle_id" db:"bundle_id"`
	BundleName   string    `json:"bundle_name" db:"bundle_name"`
	Version      string    `json:"bundle_version" db:"bundle_version"`
	DeploymentID string    `json:"deployment_id" db:"deployment_id"`
	Kind         string    `json:"kind" db:"kind" doc:"deploy or rollback"`
	Status       string    `json:"status" db:"status" enum:"success,failed,rolled_back"`
	Error        string    `json:"error" db:"error"`
	Late         bool      `json:"late" db:"late" doc:"The result came after the target was final"`
	DeployedAt   time.Time `json:"deployed_at" db:"deployed_at"`
	DurationS    float64   `json:"duration_s" db:"duration_s"`
}
