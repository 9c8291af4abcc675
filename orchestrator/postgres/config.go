package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// configNotAfter is how long a configure command holds. Configuration never
// grows old by itself: a change closes the command before it, so this only
// bounds what a device that stays away for good leaves behind.
const configNotAfter = 365 * 24 * time.Hour

type configRow struct {
	Version            int64     `db:"version"`
	HeartbeatIntervalS int       `db:"heartbeat_interval_s"`
	HeartbeatTimeoutS  int       `db:"heartbeat_timeout_s"`
	DeployTimeoutS     int       `db:"deploy_timeout_s"`
	LogLevel           string    `db:"log_level"`
	Metadata           []byte    `db:"metadata"`
	UpdatedAt          time.Time `db:"updated_at"`
	UpdatedBy          string    `db:"updated_by"`
	Reported           int64     `db:"reported"`
	Outcome            string    `db:"outcome"`
	Error              string    `db:"error"`
}

const configColumns = `c.version, c.heartbeat_interval_s, c.heartbeat_timeout_s, c.deploy_timeout_s, c.log_level, c.metadata, c.updated_at, c.updated_by`

const configSelect = `SELECT ` + configColumns + `, COALESCE(s.config_version, 0) AS reported, COALESCE(s.config_outcome, '') AS outcome, COALESCE(s.config_error, '') AS error
	FROM device_configs c LEFT JOIN device_status s ON s.device_id = c.device_id WHERE c.device_id = $1`

func (r configRow) config() (fleet.DeviceConfig, error) {
	c := fleet.DeviceConfig{
		Config: fleet.Config{
			Version: r.Version, HeartbeatIntervalS: r.HeartbeatIntervalS, HeartbeatTimeoutS: r.HeartbeatTimeoutS,
			DeployTimeoutS: r.DeployTimeoutS, LogLevel: r.LogLevel, Metadata: map[string]any{},
		},
		UpdatedAt: r.UpdatedAt.UTC(), UpdatedBy: r.UpdatedBy, ReportedVersion: r.Reported, Outcome: r.Outcome, Error: r.Error,
	}
	if err := json.Unmarshal(r.Metadata, &c.Metadata); err != nil {
		return c, fmt.Errorf("decode configuration: %w", err)
	}
	return c, nil
}

// DeviceConfig returns a device's configuration. The first read makes it, with
// the defaults.
func (d *DB) DeviceConfig(ctx context.Context, id string, scope fleet.Selector) (fleet.DeviceConfig, error) {
	var c fleet.DeviceConfig
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := deviceGet(ctx, tx, id, scope, ""); err != nil {
			return err
		}
		if err := configEnsure(ctx, tx, id); err != nil {
			return err
		}
		var err error
		c, err = configGet(ctx, tx, id, "")
		return err
	})
	return c, err
}

// configEnsure gives a device the default configuration if it has none.
func configEnsure(ctx context.Context, tx *sqlx.Tx, id string) error {
	res, err := tx.ExecContext(ctx, `INSERT INTO device_configs (device_id) VALUES ($1) ON CONFLICT (device_id) DO NOTHING`, id)
	if err != nil {
		return translate(err, "make configuration")
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return translate(err, "make configuration")
	}
	return configKeep(ctx, tx, id, fleet.DefaultConfig(), "")
}

func configGet(ctx context.Context, q sqlx.QueryerContext, id, lock string) (fleet.DeviceConfig, error) {
	var row configRow
	if err := sqlx.GetContext(ctx, q, &row, configSelect+lock, id); err != nil {
		return fleet.DeviceConfig{}, translate(err, "read configuration")
	}
	return row.config()
}

// configKeep adds a version to the history.
func configKeep(ctx context.Context, tx *sqlx.Tx, id string, c fleet.Config, by string) error {
	b, err := jsonOrNull(c)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO device_config_versions (device_id, version, config, created_by) VALUES ($1, $2, $3, $4)`, id, c.Version, b, by)
	return translate(err, "keep configuration version")
}

// SetDeviceConfig changes a device's configuration: version + 1, unless nothing
// changes. A version above zero in ifVersion must be the current one, else
// fleet.CodeStale. The device is told by a command of the same transaction.
func (d *DB) SetDeviceConfig(ctx context.Context, id string, patch fleet.ConfigPatch, ifVersion int64, scope fleet.Selector, by fleet.Actor) (fleet.DeviceConfig, error) {
	var after fleet.DeviceConfig
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := deviceGet(ctx, tx, id, scope, ""); err != nil {
			return err
		}
		var err error
		after, _, err = configSet(ctx, tx, id, patch, ifVersion, by)
		return err
	})
	return after, err
}

// SetConfigs changes the configuration of every device that f chooses, all in
// one transaction.
func (d *DB) SetConfigs(ctx context.Context, f fleet.DeviceFilter, patch fleet.ConfigPatch, by fleet.Actor) (fleet.ConfigChange, error) {
	var change fleet.ConfigChange
	w, err := deviceWhere(f)
	if err != nil {
		return change, err
	}
	w.and("d.status <> 'revoked'")
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		change = fleet.ConfigChange{}
		var ids []string
		if err := tx.SelectContext(ctx, &ids, `SELECT d.id`+deviceFrom+w.sql()+` ORDER BY d.id`, w.args...); err != nil {
			return translate(err, "select devices")
		}
		if len(ids) == 0 {
			return fleet.Errorf(fleet.CodeInvalid, "selector %q chooses no device", f.Selector)
		}
		for _, id := range ids {
			_, changed, err := configSet(ctx, tx, id, patch, 0, by)
			if err != nil {
				return err
			}
			change.Devices++
			if changed {
				change.Changed++
			}
		}
		return nil
	})
	return change, err
}

// maxConfigVersion bounds what a device can make of its configuration's version:
// what JSON carries in every language.
const maxConfigVersion = 1 << 53

func configSet(ctx context.Context, tx *sqlx.Tx, id string, patch fleet.ConfigPatch, ifVersion int64, by fleet.Actor) (after fleet.DeviceConfig, changed bool, err error) {
	if err := configEnsure(ctx, tx, id); err != nil {
		return after, false, err
	}
	before, err := configGet(ctx, tx, id, " FOR UPDATE OF c")
	if err != nil {
		return after, false, err
	}
	if ifVersion > 0 && ifVersion != before.Version {
		return after, false, fleet.Errorf(fleet.CodeStale, "the configuration of %q is at version %d, If-Match names %d: read it again", id, before.Version, ifVersion)
	}
	want := patch.Apply(before.Config)
	if err := want.Validate(); err != nil {
		return after, false, err
	}
	metadata, err := jsonOrNull(orEmpty(want.Metadata))
	if err != nil {
		return after, false, err
	}
	// A device refuses a version below the one it has, and a restored database
	// does not know what it gave out after the backup.
	known := before.ReportedVersion
	if known >= maxConfigVersion {
		known = 0 // nobody gave that out
	}
	var rows []configRow
	if err := tx.SelectContext(ctx, &rows, `UPDATE device_configs c SET heartbeat_interval_s = $2, heartbeat_timeout_s = $3, deploy_timeout_s = $4,
		log_level = $5, metadata = $6::jsonb, version = greatest(c.version, $11) + 1, updated_at = now(), updated_by = $7 WHERE c.device_id = $1
		AND (c.heartbeat_interval_s, c.heartbeat_timeout_s, c.deploy_timeout_s, c.log_level, c.metadata) IS DISTINCT FROM ($2::int, $3::int, $4::int, $5::text, $6::jsonb)
		RETURNING `+configColumns+`, $8::bigint AS reported, $9::text AS outcome, $10::text AS error`,
		id, want.HeartbeatIntervalS, want.HeartbeatTimeoutS, want.DeployTimeoutS, want.LogLevel, metadata, by.Name,
		before.ReportedVersion, before.Outcome, before.Error, known); err != nil {
		return after, false, translate(err, "change configuration")
	}
	if len(rows) == 0 {
		return before, false, nil
	}
	if after, err = rows[0].config(); err != nil {
		return after, false, err
	}
	if err := configKeep(ctx, tx, id, after.Config, by.Name); err != nil {
		return after, false, err
	}
	if err := configCommand(ctx, tx, id, after.Config); err != nil {
		return after, false, err
	}
	if err := audit(ctx, tx, by, "config.update", id, before.Config, after.Config); err != nil {
		return after, false, err
	}
	return after, true, event(ctx, tx, fleet.EventConfigChanged, id, id, map[string]any{"version": after.Version})
}

// configCommand closes the configure command that is still open and opens one
// for c, if the device may get commands.
func configCommand(ctx context.Context, tx *sqlx.Tx, id string, c fleet.Config) error {
	var until []time.Time
	if err := tx.SelectContext(ctx, &until, `SELECT now() + make_interval(secs => $2) FROM devices WHERE id = $1 AND status = 'active'`,
		id, configNotAfter.Seconds()); err != nil {
		return translate(err, "read credential")
	}
	if len(until) == 0 {
		return nil
	}
	if _, err := tx.ExecContext(ctx, `UPDATE commands SET status = 'cancelled', closed_at = now() WHERE device_id = $1 AND type = 'configure' AND status = 'open'`, id); err != nil {
		return translate(err, "close older configure command")
	}
	_, err := commandAdd(ctx, tx, string(protocol.CommandConfigure), []commandNew{{device: id, body: protocol.Configure{Config: c}}}, until[0])
	return err
}

// configCatchUp tells a device that has just become active what was changed
// while it could get no commands.
func configCatchUp(ctx context.Context, tx *sqlx.Tx, id string) error {
	var rows []configRow
	if err := tx.SelectContext(ctx, &rows, configSelect+` AND c.version > GREATEST(COALESCE(s.config_version, 0), 1)`, id); err != nil {
		return translate(err, "read configuration")
	}
	if len(rows) == 0 {
		return nil
	}
	c, err := rows[0].config()
	if err != nil {
		return err
	}
	return configCommand(ctx, tx, id, c.Config)
}

// ConfigHistory returns the versions of a device's configuration, newest first.
func (d *DB) ConfigHistory(ctx context.Context, id string, scope fleet.Selector, p fleet.Page) (fleet.List[fleet.ConfigVersion], error) {
	var list fleet.List[fleet.ConfigVersion]
	if _, err := d.Device(ctx, id, scope); err != nil {
		return list, err
	}
	w := &where{}
	w.and("device_id = %s", id)
	var total int
	if err := d.db.GetContext(ctx, &total, `SELECT count(*) FROM device_config_versions`+w.sql(), w.args...); err != nil {
		return list, translate(err, "count configuration versions")
	}
	if err := w.cursorID("version", p.Cursor); err != nil {
		return list, err
	}
	var rows []struct {
		Config    []byte    `db:"config"`
		Outcome   string    `db:"outcome"`
		Error     string    `db:"error"`
		CreatedAt time.Time `db:"created_at"`
		CreatedBy string    `db:"created_by"`
	}
	if err := d.db.SelectContext(ctx, &rows, `SELECT config, outcome, error, created_at, created_by FROM device_config_versions`+
		w.sql()+` ORDER BY version DESC LIMIT `+w.arg(p.Limit+1), w.args...); err != nil {
		return list, translate(err, "read configuration versions")
	}
	versions := make([]fleet.ConfigVersion, 0, len(rows))
	for _, r := range rows {
		v := fleet.ConfigVersion{Outcome: r.Outcome, Error: r.Error, CreatedAt: r.CreatedAt.UTC(), CreatedBy: r.CreatedBy}
		if err := json.Unmarshal(r.Config, &v.Config); err != nil {
			return list, fmt.Errorf("decode configuration version: %w", err)
		}
		versions = append(versions, v)
	}
	return cut(versions, p.Limit, total, func(v fleet.ConfigVersion) string { return cursorText(strconv.FormatInt(v.Version, 10)) }), nil
}
