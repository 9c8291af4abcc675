package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
)

// deviceRow is one device as the lists read it.
type deviceRow struct {
	ID             string           `db:"id"`
	DeviceType     string           `db:"device_type"`
	Serial         string           `db:"serial"`
	Description    string           `db:"description"`
	Hardware       []byte           `db:"hardware_metadata"`
	Labels         []byte           `db:"labels"`
	Credential     fleet.Credential `db:"status"`
	KeyType        string           `db:"key_type"`
	KeyHash        []byte           `db:"key_hash"`
	Online         bool             `db:"online"`
	Health         string           `db:"health"`
	LastHeartbeat  *time.Time       `db:"last_heartbeat"`
	LastSeen       *time.Time       `db:"last_seen"`
	AgentVersion   string           `db:"agent_version"`
	OS             string           `db:"os"`
	Arch           string           `db:"arch"`
	UptimeS        int64            `db:"uptime_s"`
	CPUPct         *float64         `db:"cpu_pct"`
	MemoryMB       *float64         `db:"memory_mb"`
	DiskPct        *float64         `db:"disk_pct"`
	BundleName     string           `db:"bundle_name"`
	BundleVersion  string           `db:"bundle_version"`
	Release        string           `db:"release"`
	ConfigVersion  int64            `db:"config_desired"`
	ConfigReported int64            `db:"config_version"`
	ConfigOutcome  string           `db:"config_outcome"`
	CreatedAt      time.Time        `db:"created_at"`
	UpdatedAt      time.Time        `db:"updated_at"`
}

// deviceSelect reads deviceRow. A device whose configuration nobody has asked
// for yet has the defaults, version 1.
const deviceSelect = `SELECT d.id, d.device_type, d.serial, d.description, d.hardware_metadata, d.labels, d.status, d.key_type, d.key_hash,
	COALESCE(s.online, false) AS online, COALESCE(s.health, '') AS health, s.last_heartbeat, s.last_seen,
	COALESCE(s.agent_version, '') AS agent_version, COALESCE(s.os, '') AS os, COALESCE(s.arch, '') AS arch,
	COALESCE(s.uptime_s, 0) AS uptime_s, s.cpu_pct, s.memory_mb, s.disk_pct,
	COALESCE(s.bundle_name, '') AS bundle_name, COALESCE(s.bundle_version, '') AS bundle_version, COALESCE(s.release, '') AS release,
	COALESCE(c.version, 1) AS config_desired, COALESCE(s.config_version, 0) AS config_version, COALESCE(s.config_outcome, '') AS config_outcome,
	d.created_at, d.updated_at` + deviceFrom

const deviceFrom = ` FROM devices d LEFT JOIN device_status s ON s.device_id = d.id LEFT JOIN device_configs c ON c.device_id = d.id`

func (r deviceRow) device() (fleet.Device, error) {
	d := fleet.Device{
		ID: r.ID, DeviceType: r.DeviceType, Serial: r.Serial, Description: r.Description,
		HardwareMetadata: map[string]any{}, Labels: fleet.Labels{},
		Status: fleet.DeviceStatus(r.Credential, r.Online, r.Health), Health: r.Health,
		KeyType: r.KeyType, Fingerprint: identity.FingerprintOf(r.KeyHash),
		LastHeartbeat: utcTime(r.LastHeartbeat), LastSeen: utcTime(r.LastSeen), AgentVersion: r.AgentVersion, OS: r.OS, Arch: r.Arch,
		UptimeS: r.UptimeS, CPUPct: r.CPUPct, MemoryMB: r.MemoryMB, DiskPct: r.DiskPct,
		BundleName: r.BundleName, BundleVersion: r.BundleVersion, Release: r.Release,
		ConfigVersion: r.ConfigVersion, ConfigReported: r.ConfigReported, ConfigOutcome: r.ConfigOutcome,
		CreatedAt: r.CreatedAt.UTC(), UpdatedAt: r.UpdatedAt.UTC(),
	}
	if err := json.Unmarshal(r.Hardware, &d.HardwareMetadata); err != nil {
		return d, fmt.Errorf("decode hardware of device %s: %w", r.ID, err)
	}
	if err := json.Unmarshal(r.Labels, &d.Labels); err != nil {
		return d, fmt.Errorf("decode labels of device %s: %w", r.ID, err)
	}
	return d, nil
}

func utcTime(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	u := t.UTC()
	return &u
}

// deviceWhere turns a filter into conditions over deviceFrom.
func deviceWhere(f fleet.DeviceFilter) (*where, error) {
	w := &where{}
	w.selector("d.labels", f.Scope)
	w.selector("d.labels", f.Selector)
	switch f.Status {
	case "":
	case "pending", "quarantined", "revoked":
		w.and("d.status = %s", f.Status)
	case "offline":
		w.and("d.status = 'active' AND NOT COALESCE(s.online, false)")
	case "error":
		w.and("d.status = 'active' AND s.online AND s.health = 'error'")
	case "online":
		w.and("d.status = 'active' AND s.online AND s.health <> 'error'")
	default:
		return nil, fleet.Errorf(fleet.CodeInvalid, "status is %q, use online, offline, error, pending, quarantined or revoked", f.Status)
	}
	if f.BundleVersion != "" {
		w.and("s.bundle_version = %s", f.BundleVersion)
	}
	if f.Query != "" {
		like := w.arg("%" + strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`).Replace(f.Query) + "%")
		w.and("(d.id ILIKE " + like + " OR d.serial ILIKE " + like + " OR d.device_type ILIKE " + like + " OR d.description ILIKE " + like + ")")
	}
	return w, nil
}

// Devices lists devices by id.
func (d *DB) Devices(ctx context.Context, f fleet.DeviceFilter, p fleet.Page) (fleet.List[fleet.Device], error) {
	var list fleet.List[fleet.Device]
	w, err := deviceWhere(f)
	if err != nil {
		return list, err
	}
	var total int
	if err := d.db.GetContext(ctx, &total, `SELECT count(*)`+deviceFrom+w.sql(), w.args...); err != nil {
		return list, translate(err, "count devices")
	}
	if p.Cursor != "" {
		after, err := cursorParts(p.Cursor, 1)
		if err != nil {
			return list, err
		}
		w.and("d.id > %s", after[0])
	}
	var rows []deviceRow
	q := deviceSelect + w.sql() + ` ORDER BY d.id LIMIT ` + w.arg(p.Limit+1)
	if err := d.db.SelectContext(ctx, &rows, q, w.args...); err != nil {
		return list, translate(err, "list devices")
	}
	devices, err := mapRows(rows, deviceRow.device)
	if err != nil {
		return list, err
	}
	return cut(devices, p.Limit, total, func(v fleet.Device) string { return cursorText(v.ID) }), nil
}

// Device returns one device within scope; one outside of it is not found.
func (d *DB) Device(ctx context.Context, id string, scope fleet.Selector) (fleet.Device, error) {
	return deviceGet(ctx, d.db, id, scope, "")
}

// deviceGet reads one device; lock may be " FOR UPDATE OF d".
func deviceGet(ctx context.Context, q sqlx.QueryerContext, id string, scope fleet.Selector, lock string) (fleet.Device, error) {
	w := &where{}
	w.and("d.id = %s", id)
	w.selector("d.labels", scope)
	var rows []deviceRow
	if err := sqlx.SelectContext(ctx, q, &rows, deviceSelect+w.sql()+lock, w.args...); err != nil {
		return fleet.Device{}, translate(err, "read device")
	}
	if len(rows) == 0 {
		return fleet.Device{}, fleet.Errorf(fleet.CodeNotFound, "device %q does not exist", id)
	}
	return rows[0].device()
}

// UpdateDevice changes labels and description. Whoever has a scope can move no
// device out of it.
func (d *DB) UpdateDevice(ctx context.Context, id string, patch fleet.DevicePatch, scope fleet.Selector, by fleet.Actor) (fleet.Device, error) {
	var after fleet.Device
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		before, err := deviceGet(ctx, tx, id, scope, " FOR UPDATE OF d")
		if err != nil {
			return err
		}
		labels := before.Labels
		if patch.Labels != nil {
			labels = *patch.Labels
		}
		if !scope.Matches(labels) {
			return fleet.Errorf(fleet.CodeForbidden, "device %q would leave this token's scope %s", id, scope)
		}
		description := before.Description
		if patch.Description != nil {
			description = *patch.Description
		}
		if _, err := tx.ExecContext(ctx, `UPDATE devices SET labels = $2, description = $3, updated_at = now() WHERE id = $1`,
			id, labelsJSON(labels), description); err != nil {
			return translate(err, "update device")
		}
		if after, err = deviceGet(ctx, tx, id, nil, ""); err != nil {
			return err
		}
		return audit(ctx, tx, by, "device.update", id, deviceSummary(before), deviceSummary(after))
	})
	return after, err
}

// deviceSummary is what an audit row says of a device: what people decide.
func deviceSummary(d fleet.Device) map[string]any {
	return map[string]any{"labels": d.Labels, "description": d.Description, "status": d.Status, "serial": d.Serial, "fingerprint": d.Fingerprint}
}

// DeleteDevice removes a device and everything kept about it. With an open
// deployment target it is refused.
func (d *DB) DeleteDevice(ctx context.Context, id string, scope fleet.Selector, by fleet.Actor) error {
	return d.tx(ctx, func(tx *sqlx.Tx) error {
		before, err := deviceGet(ctx, tx, id, scope, " FOR UPDATE OF d")
		if err != nil {
			return err
		}
		var deployment []string
		if err := tx.SelectContext(ctx, &deployment, `SELECT deployment_id FROM deployment_targets WHERE device_id = $1
			AND state IN ('pending', 'offered', 'accepted', 'downloading', 'installing', 'verifying') LIMIT 1`, id); err != nil {
			return translate(err, "look for open deployments")
		}
		if len(deployment) > 0 {
			return fleet.Errorf(fleet.CodeConflict, "device %q is a target of deployment %s, which has not ended: cancel it first", id, deployment[0])
		}
		for _, q := range []string{`DELETE FROM device_logs WHERE device_id = $1`, `DELETE FROM devices WHERE id = $1`} {
			if _, err := tx.ExecContext(ctx, q, id); err != nil {
				return translate(err, "delete device")
			}
		}
		if err := audit(ctx, tx, by, "device.delete", id, deviceSummary(before), nil); err != nil {
			return err
		}
		if err := event(ctx, tx, fleet.EventDeviceCredential, id, id, map[string]any{"status": "deleted"}); err != nil {
			return err
		}
		return notify(ctx, tx, WorkKick+id)
	})
}
