package fleet

import "time"

// The trust modes of a fleet and of a device. The first release key makes it
// required; nothing makes it open again by itself.
const (
	TrustOpen     = "open"     // bundles need no signature
	TrustRequired = "required" // only what a release key has signed is installed
)

// ReleaseKey is the public half of a key that signs bundles.
type ReleaseKey struct {
	ID          string     `json:"id" doc:"Key id, 16 hex digits"`
	PublicKey   string     `json:"public_key" doc:"The key as one line, minisign's form"`
	Description string     `json:"description"`
	SignedBy    string     `json:"signed_by" doc:"Id of the key that signed this one; empty: the first"`
	CreatedAt   time.Time  `json:"created_at"`
	CreatedBy   string     `json:"created_by"`
	RevokedAt   *time.Time `json:"revoked_at,omitempty"`
	RevokedBy   string     `json:"revoked_by,omitempty"`
}

// ReleaseKeys is the whole trust of the fleet, in the order in which the keys
// were added.
type ReleaseKeys struct {
	Mode  string       `json:"trust_mode" enum:"open,required"`
	Items []ReleaseKey `json:"items"`
}

// Active returns the keys that are not revoked, in their one-line form.
func (k ReleaseKeys) Active() []string {
	var keys []string
	for _, key := range k.Items {
		if key.RevokedAt == nil {
			keys = append(keys, key.PublicKey)
		}
	}
	return keys
}

// NewReleaseKey asks for a release key. Signature is minisign's over the exact
// bytes of File, by a key that counts already; the first key needs none.
type NewReleaseKey struct {
	File        string // a .pub file, or its one line
	Signature   string
	Description string
}
