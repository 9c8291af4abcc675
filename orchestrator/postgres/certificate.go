package postgres

import (
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// CertifyDevice returns a client certificate for an active device's stored key.
// One by the same issuer, for the same key, that has more than half of its life
// before it is returned again, so that a repeat after a lost reply changes
// nothing; else issue makes one from the key (SubjectPublicKeyInfo, DER). A
// device in any other state is fleet.CodeForbidden.
func (d *DB) CertifyDevice(ctx context.Context, id, issuer string, issue func(publicKeyDER []byte, now time.Time) (fleet.Certificate, error)) (fleet.Certificate, error) {
	var out fleet.Certificate
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		var row struct {
			Key    []byte           `db:"public_key"`
			Hash   []byte           `db:"key_hash"`
			Status fleet.Credential `db:"status"`
			Now    time.Time        `db:"now"`
		}
		if err := tx.GetContext(ctx, &row, `SELECT public_key, key_hash, status, now() AS now FROM devices WHERE id = $1 FOR UPDATE`, id); err != nil {
			return translate(err, "read device")
		}
		if row.Status != fleet.CredentialActive {
			return fleet.Errorf(fleet.CodeForbidden, "device %s is %s: only active devices get certificates", id, row.Status)
		}
		err := tx.QueryRowxContext(ctx, `SELECT serial, issuer, pem, not_after FROM device_certificates
			WHERE device_id = $1 AND issuer = $2 AND key_hash = $3 AND now() < issued_at + (not_after - issued_at) / 2 ORDER BY issued_at DESC LIMIT 1`,
			id, issuer, row.Hash).Scan(&out.Serial, &out.Issuer, &out.PEM, &out.NotAfter)
		if !errors.Is(err, sql.ErrNoRows) {
			return translate(err, "read certificate")
		}
		if out, err = issue(row.Key, row.Now); err != nil {
			return err
		}
		return certificateStore(ctx, tx, id, row.Hash, out)
	})
	return out, err
}

func certificateStore(ctx context.Context, tx *sqlx.Tx, id string, keyHash []byte, c fleet.Certificate) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM device_certificates WHERE device_id = $1 AND not_after < now()`, id); err != nil {
		return translate(err, "remove ended certificates")
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO device_certificates (serial, device_id, issuer, key_hash, pem, not_after) VALUES ($1, $2, $3, $4, $5, $6)`,
		c.Serial, id, c.Issuer, keyHash, c.PEM, c.NotAfter); err != nil {
		return translate(err, "store certificate")
	}
	facts := map[string]any{"serial": c.Serial, "issuer": c.Issuer, "not_after": c.NotAfter.UTC().Format(time.RFC3339)}
	if err := event(ctx, tx, fleet.EventDeviceCertificate, id, id, facts); err != nil {
		return err
	}
	facts["fingerprint"] = hex.EncodeToString(keyHash)
	return audit(ctx, tx, fleet.Actor{Name: "device " + id}, "device.certificate", id, nil, facts)
}

// RevokedCertificates returns the issuer's certificates that have not ended and
// whose device is revoked or gone.
func (d *DB) RevokedCertificates(ctx context.Context, issuer string) ([]fleet.RevokedCertificate, error) {
	var out []fleet.RevokedCertificate
	err := d.db.SelectContext(ctx, &out, `SELECT c.serial, coalesce(d.updated_at, c.issued_at) AS revoked_at FROM device_certificates c
		LEFT JOIN devices d ON d.id = c.device_id WHERE c.issuer = $1 AND c.not_after > now() AND (d.id IS NULL OR d.status = 'revoked') ORDER BY c.serial`, issuer)
	return out, translate(err, "read revoked certificates")
}
