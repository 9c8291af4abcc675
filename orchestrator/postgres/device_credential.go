package postgres

import (
	"context"
	"net/http"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// RegisterDevice pre-registers a device by its key and lets it in at once. The
// same key again returns the device as it is, created false; a revoked key is a
// conflict.
func (d *DB) RegisterDevice(ctx context.Context, r fleet.Registration, der, hash []byte, keyType string, scope fleet.Selector, by fleet.Actor) (dev fleet.Device, created bool, err error) {
	hardware, err := jsonOrNull(orEmpty(r.HardwareMetadata))
	if err != nil {
		return dev, false, err
	}
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		id := fleet.NewDeviceID()
		res, err := tx.ExecContext(ctx, `INSERT INTO devices (id, public_key, key_hash, key_type, device_type, serial, description, hardware_metadata, labels, status)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'active') ON CONFLICT (key_hash) DO NOTHING`,
			id, der, hash, keyType, r.DeviceType, r.Serial, r.Description, hardware, labelsJSON(r.Labels))
		if err != nil {
			return translate(err, "register device")
		}
		n, err := res.RowsAffected()
		if err != nil {
			return translate(err, "register device")
		}
		if created = n == 1; !created {
			dev, err = deviceByKey(ctx, tx, hash, scope)
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO device_status (device_id) VALUES ($1)`, id); err != nil {
			return translate(err, "register device")
		}
		if dev, err = deviceGet(ctx, tx, id, nil, ""); err != nil {
			return err
		}
		if !scope.Matches(dev.Labels) {
			return fleet.Errorf(fleet.CodeForbidden, "the labels %q are outside of this token's scope %s", dev.Labels.String(), scope)
		}
		if err := audit(ctx, tx, by, "device.register", id, nil, deviceSummary(dev)); err != nil {
			return err
		}
		if err := event(ctx, tx, fleet.EventDeviceRegistered, id, id, map[string]any{"status": "active", "device_type": dev.DeviceType}); err != nil {
			return err
		}
		return onceDone(ctx, tx, http.StatusCreated, dev)
	})
	return dev, created, err
}

func orEmpty(m map[string]any) map[string]any {
	if m == nil {
		return map[string]any{}
	}
	return m
}

// deviceByKey returns the device that has a key, unless that was revoked.
func deviceByKey(ctx context.Context, tx *sqlx.Tx, hash []byte, scope fleet.Selector) (fleet.Device, error) {
	var id string
	if err := tx.GetContext(ctx, &id, `SELECT id FROM devices WHERE key_hash = $1`, hash); err != nil {
		return fleet.Device{}, translate(err, "read device by key")
	}
	dev, err := deviceGet(ctx, tx, id, nil, "")
	switch {
	case err != nil:
		return dev, err
	case !scope.Matches(dev.Labels):
		return fleet.Device{}, fleet.Errorf(fleet.CodeForbidden, "this key belongs to a device outside of this token's scope")
	case dev.Status == string(fleet.CredentialRevoked):
		return fleet.Device{}, fleet.Errorf(fleet.CodeConflict, "this key was revoked (device %s) and cannot come back: make a new key", id)
	}
	return dev, nil
}

// deviceMoves says which credential states an operator's verb may start from.
var deviceMoves = map[fleet.Credential]map[fleet.Credential]string{
	fleet.CredentialActive: {
		fleet.CredentialPending:     "device.approve",
		fleet.CredentialQuarantined: "device.release",
	},
	fleet.CredentialQuarantined: {
		fleet.CredentialActive: "device.quarantine",
	},
	fleet.CredentialRevoked: {
		fleet.CredentialPending:     "device.revoke",
		fleet.CredentialActive:      "device.revoke",
		fleet.CredentialQuarantined: "device.revoke",
	},
}

// SetCredential moves a device from one credential state to another: to active
// from pending (approve) or from quarantined (release), to quarantined, to
// revoked from anything (from is then ""). A device that is there already is
// returned unchanged. Open connections end within a second: the auth epoch
// rises and every replica is told.
func (d *DB) SetCredential(ctx context.Context, id string, from, to fleet.Credential, scope fleet.Selector, by fleet.Actor) (fleet.Device, error) {
	var after fleet.Device
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		if to == fleet.CredentialRevoked || to == fleet.CredentialActive { // before the device, as a report locks them
			if _, err := tx.ExecContext(ctx, `SELECT 1 FROM device_status WHERE device_id = $1 FOR NO KEY UPDATE`, id); err != nil {
				return translate(err, "lock device status")
			}
		}
		before, err := deviceGet(ctx, tx, id, scope, " FOR UPDATE OF d")
		if err != nil {
			return err
		}
		var now fleet.Credential
		if err := tx.GetContext(ctx, &now, `SELECT status FROM devices WHERE id = $1`, id); err != nil {
			return translate(err, "read credential")
		}
		if now == to {
			after = before
			return onceDone(ctx, tx, http.StatusOK, after)
		}
		action := deviceMoves[to][now]
		if action == "" || from != "" && now != from {
			return fleet.Errorf(fleet.CodeConflict, "device %q is %s: from there it cannot become %s this way", id, now, to)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE devices SET status = $2, auth_epoch = auth_epoch + 1, updated_at = now() WHERE id = $1`, id, to); err != nil {
			return translate(err, "set credential")
		}
		switch to {
		case fleet.CredentialActive:
			if now == fleet.CredentialQuarantined {
				err = cloneForget(ctx, tx, id)
			}
			if err == nil {
				err = configCatchUp(ctx, tx, id)
			}
		case fleet.CredentialRevoked:
			err = deviceGone(ctx, tx, id)
		default:
		}
		if err != nil {
			return err
		}
		if after, err = deviceGet(ctx, tx, id, nil, ""); err != nil {
			return err
		}
		if err := audit(ctx, tx, by, action, id, map[string]any{"status": now}, map[string]any{"status": to}); err != nil {
			return err
		}
		if err := event(ctx, tx, fleet.EventDeviceCredential, id, id, map[string]any{"status": to}); err != nil {
			return err
		}
		if err := notify(ctx, tx, WorkKick+id); err != nil {
			return err
		}
		if err := notify(ctx, tx, WorkDispatch); err != nil {
			return err
		}
		return onceDone(ctx, tx, http.StatusOK, after)
	})
	return after, err
}

// deviceGone marks a device offline whose connection is about to be ended, and
// its session over, so that a heartbeat on its way does not bring it back.
func deviceGone(ctx context.Context, tx *sqlx.Tx, id string) error {
	var online []bool
	if err := tx.SelectContext(ctx, &online, `UPDATE device_status s SET online = false, seq = $2 FROM device_status was
		WHERE s.device_id = $1 AND was.device_id = $1 RETURNING was.online`, id, int64(sessionOver)); err != nil {
		return translate(err, "mark device offline")
	}
	if len(online) == 0 || !online[0] {
		return nil
	}
	return event(ctx, tx, fleet.EventDeviceOffline, id, id, map[string]any{"reason": "revoked"})
}
