package fleet

import (
	"crypto/rand"
	"encoding/base32"
	"regexp"
)

var deviceID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

var lowerBase32 = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NewDeviceID makes a random device id: 12 characters, because every topic
// carries it over the device's link; 60 random bits.
func NewDeviceID() string { return random(12) }

// NewID makes a random id that no one can guess: prefix, a dash and 20
// characters (100 random bits).
func NewID(prefix string) string { return prefix + "-" + random(20) }

// ValidDeviceID reports whether s may be a device id, a rule that keeps ids
// safe in topics, paths and shells.
func ValidDeviceID(s string) bool { return deviceID.MatchString(s) }

func random(n int) string {
	b := make([]byte, (n*5+7)/8)
	_, _ = rand.Read(b) // never fails: it aborts the program instead
	return lowerBase32.EncodeToString(b)[:n]
}
