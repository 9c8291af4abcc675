package fleet

import "time"

// Certificate is a client certificate that was issued to a device.
type Certificate struct {
	Serial   string // hex
	Issuer   string // key id of the CA, hex
	PEM      string
	NotAfter time.Time
}

// RevokedCertificate is one that a broker must not take any more, although it
// has not ended.
type RevokedCertificate struct {
	Serial    string    `db:"serial"` // hex
	RevokedAt time.Time `db:"revoked_at"`
}
