package postgres

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

type stateBefore struct {
	Credential    fleet.Credential `db:"status"`
	Session       int64            `db:"session"`
	Seq           int64            `db:"seq"`
	Boot          string           `db:"boot"`
	StateRev      int64            `db:"state_rev"`
	Online        bool             `db:"online"`
	Health        string           `db:"health"`
	Release       string           `db:"release"`
	ConfigVersion int64            `db:"config_version"`
	ConfigOutcome string           `db:"config_outcome"`
	SessionOld    bool             `db:"session_old"` // born more than a minute ago
}

// ApplyState stores a device's full report. The first one of a session makes
// the device's open commands due again; any report makes those due that the
// device has not seen, and opens a configure command where the configuration it
// reports is not the desired one. It does not wait for the disk: a device whose
// report is lost in a crash of the server is asked for it at its next
// heartbeat. allow says whether the device may cause one more event now.
func (d *DB) ApplyState(ctx context.Context, id string, s protocol.State, allow func(deviceID string) bool) (fleet.StateOutcome, error) {
	var out fleet.StateOutcome
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		out = fleet.StateOutcome{}
		if _, err := tx.ExecContext(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
			return translate(err, "relax the commit")
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO device_status (device_id) SELECT id FROM devices WHERE id = $1 ON CONFLICT (device_id) DO NOTHING`, id); err != nil {
			return translate(err, "make device status")
		}
		var was stateBefore
		err := tx.GetContext(ctx, &was, `SELECT d.status, s.session, s.seq, s.boot, s.state_rev, s.online, s.health, s.release, s.config_version, s.config_outcome,
			COALESCE(s.session_at < now() - interval '1 minute', false) AS session_old FROM devices d JOIN device_status s ON s.device_id = d.id WHERE d.id = $1 FOR UPDATE OF s`, id)
		switch {
		case errors.Is(err, sql.ErrNoRows) || err == nil && was.Credential != fleet.CredentialActive:
			out.Refused = true
			return nil
		case err != nil:
			return translate(err, "read device status")
		}
		newer := s.Session > was.Session
		out.Birth = newer || s.Session == was.Session && was.Boot == ""
		out.CloneSign = was.cloneSign(s)
		out.Stale = s.Session < was.Session || !out.Birth && s.StateRev < was.StateRev
		if out.CloneSign {
			out.Quarantined, err = cloneSeen(ctx, tx, id, s, was)
			return err
		}
		if out.Stale {
			return nil
		}
		return stateStore(ctx, tx, id, s, was, out.Birth, allow)
	})
	return out, err
}

func stateStore(ctx context.Context, tx *sqlx.Tx, id string, s protocol.State, was stateBefore, birth bool, allow func(string) bool) error {
	// The goodbye of this very session may have been faster than its report.
	online := s.Session > was.Session || was.Seq != sessionOver
	if _, err := tx.ExecContext(ctx, `UPDATE device_status SET session = $2, session_at = CASE WHEN session < $2 OR boot = '' THEN now() ELSE session_at END, seq = CASE WHEN session < $2 THEN 0 ELSE seq END, boot = $3, state_rev = $4, online = $5, last_seen = now(),
		health = $6, agent_version = $7, os = $8, arch = $9, bundle_name = $10, bundle_version = $11, release = $12, highest_seq = greatest(highest_seq, $13),
		trust_mode = $14, release_keys = $15, command_key = $16
		WHERE device_id = $1`, id, s.Session, orDash(s.Boot), s.StateRev, online,
		s.Status, s.AgentVersion, s.OS, s.Arch, s.BundleName, s.BundleVersion, s.Release, s.HighestSeq, s.TrustMode, trustKeys(s), s.CommandKey); err != nil {
		return translate(err, "update device status")
	}
	if err := stateSeqs(ctx, tx, id); err != nil {
		return err
	}
	if s.Hardware != nil {
		b, err := jsonOrNull(s.Hardware)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE devices SET hardware_metadata = $2, updated_at = now() WHERE id = $1 AND hardware_metadata <> $2::jsonb`, id, b); err != nil {
			return translate(err, "update hardware")
		}
	}
	if s.ConfigVersion > 0 && s.ConfigOutcome != "" {
		if err := configReported(ctx, tx, id, s.ConfigVersion, s.ConfigOutcome, s.ConfigError); err != nil {
			return err
		}
	}
	if err := stateEvents(ctx, tx, id, s, was, online, allow); err != nil {
		return err
	}
	if err := stateConfig(ctx, tx, id, s); err != nil {
		return err
	}
	if err := trustCatchUp(ctx, tx, id, s); err != nil {
		return err
	}
	if err := commandsEnded(ctx, tx, id, s); err != nil {
		return err
	}
	return commandsDue(ctx, tx, id, "", birth)
}

// stateSeqs gives commands that were never sent a new seq if the device has seen
// a higher one already. Where the database is older than the device, because it
// was restored, the device would refuse them as old.
func stateSeqs(ctx context.Context, tx *sqlx.Tx, id string) error {
	const behind = ` FROM commands c JOIN device_status s ON s.device_id = c.device_id
		WHERE c.device_id = $1 AND c.status = 'open' AND c.sends = 0 AND c.seq <= least(s.highest_seq, $2)`
	var n int
	if err := tx.GetContext(ctx, &n, `SELECT count(*)`+behind, id, int64(maxHighestSeq)); err != nil || n == 0 {
		return translate(err, "compare seqs")
	}
	// The device's row first, as whoever adds a command does.
	var next int64
	if err := tx.GetContext(ctx, &next, `UPDATE devices d SET next_seq = greatest(d.next_seq, least(s.highest_seq, $2) + 1) + $3
		FROM device_status s WHERE d.id = $1 AND s.device_id = d.id RETURNING d.next_seq - $3`, id, int64(maxHighestSeq), n); err != nil {
		return translate(err, "take new seqs")
	}
	_, err := tx.ExecContext(ctx, `UPDATE commands k SET seq = $3 + b.n FROM (SELECT c.id, row_number() OVER (ORDER BY c.seq) - 1 AS n`+behind+`) b
		WHERE k.id = b.id AND k.status = 'open' AND k.sends = 0 AND b.n < $4`, id, int64(maxHighestSeq), next, n)
	return translate(err, "renumber commands")
}

// orDash keeps a report without a boot id apart from "no report in this
// session yet".
func orDash(boot string) string {
	if boot == "" {
		return "-"
	}
	return boot
}

// trustKeys is the reported release keys in the order in which they are compared.
func trustKeys(s protocol.State) string {
	ids := slices.Clone(s.ReleaseKeys)
	slices.Sort(ids)
	return strings.Join(ids, " ")
}

func stateEvents(ctx context.Context, tx *sqlx.Tx, id string, s protocol.State, was stateBefore, online bool, allow func(string) bool) error {
	var events reportEvents
	switch {
	case online && !was.Online && allow(id):
		events.add(fleet.EventDeviceOnline, id, map[string]any{"health": s.Status})
	case was.Online && s.Status != was.Health && allow(id):
		events.add(fleet.EventDeviceHealth, id, map[string]any{"health": s.Status})
	}
	if s.Release != was.Release && allow(id) {
		events.add(fleet.EventDeviceRelease, id, map[string]any{"bundle": s.BundleName, "bundle_version": s.BundleVersion, "release": s.Release})
	}
	return events.write(ctx, tx)
}

// stateConfig opens a configure command if the device reports a configuration
// that is older than the desired one, gave no outcome for that yet, and no
// command is open: what a restored database or an expired command left behind.
func stateConfig(ctx context.Context, tx *sqlx.Tx, id string, s protocol.State) error {
	var missing bool
	if err := tx.GetContext(ctx, &missing, `SELECT EXISTS (SELECT 1 FROM device_configs c
		WHERE c.device_id = $1 AND c.version > greatest($2::bigint, 1)
		AND NOT EXISTS (SELECT 1 FROM device_config_versions v WHERE v.device_id = $1 AND v.version = c.version AND v.outcome <> '')
		AND NOT EXISTS (SELECT 1 FROM commands k WHERE k.device_id = $1 AND k.type = 'configure' AND k.status = 'open' AND k.not_after > now()))`,
		id, s.ConfigVersion); err != nil {
		return translate(err, "compare configuration")
	}
	if !missing {
		return nil
	}
	return configCatchUp(ctx, tx, id)
}

// configReported stores what a device made of a version of its configuration.
func configReported(ctx context.Context, tx *sqlx.Tx, id string, version int64, outcome, reason string) error {
	reason = protocol.TrimText(reason, 2<<10)
	if _, err := tx.ExecContext(ctx, `UPDATE device_status SET config_version = $2, config_outcome = $3, config_error = $4
		WHERE device_id = $1 AND config_version <= $2`, id, version, outcome, reason); err != nil {
		return translate(err, "store configuration outcome")
	}
	res, err := tx.ExecContext(ctx, `UPDATE device_config_versions SET outcome = $3, error = $4
		WHERE device_id = $1 AND version = $2 AND (outcome, error) IS DISTINCT FROM ($3, $4)`, id, version, outcome, reason)
	if err != nil {
		return translate(err, "store configuration outcome")
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	return event(ctx, tx, fleet.EventConfigReported, id, id, map[string]any{"version": version, "outcome": outcome, "error": reason})
}
