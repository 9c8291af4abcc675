package postgres

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// errEnrollRace says that the same key was enrolled by someone else between two
// statements.
var errEnrollRace = errors.New("the key was enrolled meanwhile")

// Enroll makes the holder of a key a device, idempotent on the key: a key that
// is known keeps its id and spends nothing, a revoked one is fleet.CodeForbidden.
// A claim token is spent once a key and grants its labels; one that does not
// count (unknown, revoked, expired, used up, for other serials) is
// fleet.CodeUnauthorized. Without a token a new device waits for approval, if
// mayWait lets one more of them in, else fleet.CodeRateLimited. receipt returns
// the hash of the registration token for a device id.
func (d *DB) Enroll(ctx context.Context, e fleet.Enrollment, receipt func(deviceID string) []byte, mayWait func() bool) (fleet.Enrolled, error) {
	var out fleet.Enrolled
	var err error
	for range 3 {
		err = d.tx(ctx, func(tx *sqlx.Tx) error {
			var err error
			if out, err = enrollKnown(ctx, tx, e); errors.Is(err, sql.ErrNoRows) {
				out, err = enrollNew(ctx, tx, e, mayWait)
			}
			if err != nil {
				return err
			}
			return enrollFinish(ctx, tx, &out, receipt(out.DeviceID))
		})
		if !errors.Is(err, errEnrollRace) {
			break
		}
	}
	return out, err
}

// enrollKnown returns the device of a key; sql.ErrNoRows if there is none. A
// device that waits for approval becomes active by a claim token that approves.
func enrollKnown(ctx context.Context, tx *sqlx.Tx, e fleet.Enrollment) (fleet.Enrolled, error) {
	var row struct {
		ID     string           `db:"id"`
		Status fleet.Credential `db:"status"`
		Serial string           `db:"serial"`
		Token  *string          `db:"enrollment_token"`
	}
	err := tx.GetContext(ctx, &row, `SELECT id, status, serial, enrollment_token FROM devices WHERE key_hash = $1 FOR UPDATE`, e.KeyHash)
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.Enrolled{}, sql.ErrNoRows
	}
	if err != nil {
		return fleet.Enrolled{}, translate(err, "read device by key")
	}
	switch {
	case row.Status == fleet.CredentialRevoked:
		return fleet.Enrolled{}, fleet.Errorf(fleet.CodeForbidden, "this key was revoked and cannot come back: make a new key")
	case row.Serial != "" && e.Serial != "" && row.Serial != e.Serial:
		return fleet.Enrolled{}, fleet.Errorf(fleet.CodeForbidden, "this key is registered for serial %q, the request says %q", row.Serial, e.Serial)
	}
	out := fleet.Enrolled{DeviceID: row.ID, Credential: row.Status}
	if row.Status == fleet.CredentialPending && row.Token == nil && e.TokenHash != nil {
		t, err := enrollSpend(ctx, tx, e)
		if err != nil {
			return out, err
		}
		if t.AutoApprove {
			out.Credential = fleet.CredentialActive
		}
		if _, err := tx.ExecContext(ctx, `UPDATE devices SET enrollment_token = $2, labels = labels || $3::jsonb, status = $4, auth_epoch = auth_epoch + 1, updated_at = now() WHERE id = $1`,
			row.ID, t.ID, string(t.Labels), out.Credential); err != nil {
			return out, translate(err, "claim device")
		}
		if err := enrollRecord(ctx, tx, "device.claim", out, e, t.ID); err != nil {
			return out, err
		}
		if err := notify(ctx, tx, WorkKick+row.ID); err != nil {
			return out, err
		}
	}
	if err := enrollDescribe(ctx, tx, row.ID, e); err != nil {
		return out, err
	}
	return out, nil
}

// enrollDescribe fills in what a device says about itself and nobody has set.
func enrollDescribe(ctx context.Context, tx *sqlx.Tx, id string, e fleet.Enrollment) error {
	hardware, err := jsonOrNull(orEmpty(e.HardwareMetadata))
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `UPDATE devices SET serial = COALESCE(NULLIF(serial, ''), $2), device_type = COALESCE(NULLIF(device_type, ''), $3),
		hardware_metadata = CASE WHEN hardware_metadata = '{}' THEN $4::jsonb ELSE hardware_metadata END
		WHERE id = $1 AND (serial = '' AND $2 <> '' OR device_type = '' AND $3 <> '' OR hardware_metadata = '{}' AND $4::jsonb <> '{}')`, id, e.Serial, e.DeviceType, hardware)
	return translate(err, "describe device")
}

func enrollNew(ctx context.Context, tx *sqlx.Tx, e fleet.Enrollment, mayWait func() bool) (fleet.Enrolled, error) {
	out := fleet.Enrolled{DeviceID: fleet.NewDeviceID(), Credential: fleet.CredentialPending, New: true}
	t := enrollToken{Labels: json.RawMessage("{}")}
	var token *string
	if e.TokenHash != nil {
		var err error
		if t, err = enrollSpend(ctx, tx, e); err != nil {
			return out, err
		}
		token = &t.ID
		if t.AutoApprove {
			out.Credential = fleet.CredentialActive
		}
	} else if !mayWait() {
		return out, fleet.Errorf(fleet.CodeRateLimited, "too many devices enrol without a token: try again later")
	}
	hardware, err := jsonOrNull(orEmpty(e.HardwareMetadata))
	if err != nil {
		return out, err
	}
	res, err := tx.ExecContext(ctx, `INSERT INTO devices (id, public_key, key_hash, key_type, device_type, serial, hardware_metadata, labels, status, enrollment_token)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (key_hash) DO NOTHING`,
		out.DeviceID, e.PublicKeyDER, e.KeyHash, e.KeyType, e.DeviceType, e.Serial, hardware, string(t.Labels), out.Credential, token)
	if err != nil {
		return out, translate(err, "store device")
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return out, errEnrollRace // rolled back: the token stays unspent
	}
	return out, enrollRecord(ctx, tx, "device.enroll", out, e, t.ID)
}

type enrollToken struct {
	ID          string          `db:"id"`
	Labels      json.RawMessage `db:"labels"`
	AutoApprove bool            `db:"auto_approve"`
}

// enrollSpend takes one use of a claim token, if it still counts.
func enrollSpend(ctx context.Context, tx *sqlx.Tx, e fleet.Enrollment) (enrollToken, error) {
	var t enrollToken
	err := tx.QueryRowxContext(ctx, `UPDATE enrollment_tokens SET uses = uses + 1 WHERE token_hash = $1 AND revoked_at IS NULL
		AND (expires_at IS NULL OR expires_at > now()) AND (max_uses = 0 OR uses < max_uses) AND (serials = '{}' OR $2 = ANY(serials))
		RETURNING id, labels, auto_approve`, e.TokenHash, e.Serial).Scan(&t.ID, (*[]byte)(&t.Labels), &t.AutoApprove)
	if errors.Is(err, sql.ErrNoRows) {
		return t, fleet.Errorf(fleet.CodeUnauthorized, "the enrollment token is unknown, expired, revoked, used up or not for serial %q", e.Serial)
	}
	return t, translate(err, "spend enrollment token")
}

func enrollRecord(ctx context.Context, tx *sqlx.Tx, action string, out fleet.Enrolled, e fleet.Enrollment, token string) error {
	after := map[string]any{"status": out.Credential, "key_type": e.KeyType, "fingerprint": hex.EncodeToString(e.KeyHash), "serial": e.Serial, "enrollment_token": token}
	by := fleet.Actor{Name: "device " + out.DeviceID, Remote: e.Nonce}
	if err := audit(ctx, tx, by, action, out.DeviceID, nil, after); err != nil {
		return err
	}
	return event(ctx, tx, fleet.EventDeviceRegistered, out.DeviceID, out.DeviceID, map[string]any{"status": out.Credential, "device_type": e.DeviceType})
}

// enrollFinish makes the rows that a device needs and stores its receipt.
func enrollFinish(ctx context.Context, tx *sqlx.Tx, out *fleet.Enrolled, receipt []byte) error {
	if _, err := tx.ExecContext(ctx, `INSERT INTO device_status (device_id) VALUES ($1) ON CONFLICT (device_id) DO NOTHING`, out.DeviceID); err != nil {
		return translate(err, "make device status")
	}
	if err := configEnsure(ctx, tx, out.DeviceID); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE devices SET receipt_hash = $2 WHERE id = $1 AND receipt_hash IS DISTINCT FROM $2`, out.DeviceID, receipt); err != nil {
		return translate(err, "store receipt")
	}
	c, err := configGet(ctx, tx, out.DeviceID, "")
	if err != nil {
		return fmt.Errorf("configuration of device %s: %w", out.DeviceID, err)
	}
	out.Config = c.Config
	out.Trust, _, err = releaseKeys(ctx, tx)
	return err
}
