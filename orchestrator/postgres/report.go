package postgres

import (
	"context"
	"math"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// sessionOver is the seq of a session whose connection is known to have ended:
// no heartbeat of it can be newer.
const sessionOver = math.MaxInt64

// flushBeats rewrites one narrow row a device where (session, seq) is newer and
// returns only the rows that ask for more. The first message of a session
// clears boot, which the full report then sets: that is how a birth is told
// from a clone even if a heartbeat overtakes it.
const flushBeats = `WITH b AS (
	SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::float8[], $9::float8[], $10::float8[])
		AS b (device_id, session, seq, state_rev, agent_version, health, uptime_s, cpu_pct, memory_mb, disk_pct)
), old AS (
	SELECT s.device_id, s.session, s.online, s.health, s.last_heartbeat, s.state_rev FROM device_status s JOIN b ON b.device_id = s.device_id
), new AS (
	UPDATE device_status s SET session = b.session, seq = b.seq, boot = CASE WHEN b.session > s.session THEN '' ELSE s.boot END,
		online = true, last_seen = now(), last_heartbeat = now(),
		health = COALESCE(NULLIF(b.health, ''), s.health), agent_version = COALESCE(NULLIF(b.agent_version, ''), s.agent_version),
		uptime_s = CASE WHEN b.uptime_s > 0 THEN b.uptime_s ELSE s.uptime_s END,
		cpu_pct = COALESCE(NULLIF(b.cpu_pct, 'NaN'), s.cpu_pct), memory_mb = COALESCE(NULLIF(b.memory_mb, 'NaN'), s.memory_mb),
		disk_pct = COALESCE(NULLIF(b.disk_pct, 'NaN'), s.disk_pct)
	FROM b WHERE s.device_id = b.device_id AND (b.session, b.seq) > (s.session, s.seq)
	RETURNING s.device_id, s.session, s.health, s.uptime_s, s.cpu_pct, s.memory_mb, s.disk_pct, b.state_rev
)
SELECT * FROM (
	SELECT new.device_id, new.health, new.uptime_s, new.cpu_pct, new.memory_mb, new.disk_pct,
		new.session > old.session OR NOT old.online AS back, NOT old.online AS online_now, new.health <> old.health AS health_changed,
		date_trunc('minute', old.last_heartbeat) IS DISTINCT FROM date_trunc('minute', now()) AS sample,
		new.state_rev <> old.state_rev AND EXISTS (SELECT 1 FROM devices d WHERE d.id = new.device_id AND d.status = 'active') AS want_state
	FROM new JOIN old ON old.device_id = new.device_id) r
WHERE back OR health_changed OR sample OR want_state`

type beatRow struct {
	DeviceID      string   `db:"device_id"`
	Health        string   `db:"health"`
	UptimeS       int64    `db:"uptime_s"`
	CPUPct        *float64 `db:"cpu_pct"`
	MemoryMB      *float64 `db:"memory_mb"`
	DiskPct       *float64 `db:"disk_pct"`
	Back          bool     `db:"back"`
	OnlineNow     bool     `db:"online_now"`
	HealthChanged bool     `db:"health_changed"`
	Sample        bool     `db:"sample"`
	WantState     bool     `db:"want_state"`
}

// FlushBeats stores what devices said about their presence, at most one beat a
// device, in one transaction that does not wait for the disk: a beat lost in a
// crash of the server is replaced by the next one. It keeps one sample a minute
// and device, and returns the devices whose state_rev is not the stored one.
// allow says whether a device may cause one more event now.
func (d *DB) FlushBeats(ctx context.Context, beats []fleet.Beat, allow func(deviceID string) bool) (wantState []string, err error) {
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		wantState = nil
		if _, err := tx.ExecContext(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
			return translate(err, "relax the commit")
		}
		rows, err := beatsUpdate(ctx, tx, beats)
		if err != nil {
			return err
		}
		var events reportEvents
		var back []string
		for _, r := range rows {
			if r.WantState {
				wantState = append(wantState, r.DeviceID)
			}
			if r.Back {
				back = append(back, r.DeviceID)
			}
			switch {
			case r.OnlineNow && allow(r.DeviceID):
				events.add(fleet.EventDeviceOnline, r.DeviceID, map[string]any{"health": r.Health})
			case r.HealthChanged && !r.OnlineNow && allow(r.DeviceID):
				events.add(fleet.EventDeviceHealth, r.DeviceID, map[string]any{"health": r.Health})
			}
		}
		if err := beatsSample(ctx, tx, rows); err != nil {
			return err
		}
		if err := commandsDueBack(ctx, tx, back); err != nil {
			return err
		}
		gone, err := beatsGone(ctx, tx, beats)
		if err != nil {
			return err
		}
		for _, id := range gone {
			if allow(id) {
				events.add(fleet.EventDeviceOffline, id, map[string]any{"reason": "disconnected"})
			}
		}
		return events.write(ctx, tx)
	})
	return wantState, err
}

func beatsUpdate(ctx context.Context, tx *sqlx.Tx, beats []fleet.Beat) ([]beatRow, error) {
	n := len(beats)
	device, agent, health := make(pq.StringArray, 0, n), make(pq.StringArray, 0, n), make(pq.StringArray, 0, n)
	session, seq, rev, uptime := make(pq.Int64Array, 0, n), make(pq.Int64Array, 0, n), make(pq.Int64Array, 0, n), make(pq.Int64Array, 0, n)
	cpu, memory, disk := make(pq.Float64Array, 0, n), make(pq.Float64Array, 0, n), make(pq.Float64Array, 0, n)
	for _, b := range beats {
		if b.Session == 0 {
			continue
		}
		device, agent, health = append(device, b.DeviceID), append(agent, b.AgentVersion), append(health, b.Status)
		session, seq, rev, uptime = append(session, b.Session), append(seq, b.Seq), append(rev, b.StateRev), append(uptime, b.UptimeS)
		cpu, memory, disk = append(cpu, orNaN(b.CPUPct)), append(memory, orNaN(b.MemoryMB)), append(disk, orNaN(b.DiskPct))
	}
	if len(device) == 0 {
		return nil, nil
	}
	var rows []beatRow
	err := tx.SelectContext(ctx, &rows, flushBeats, device, session, seq, rev, agent, health, uptime, cpu, memory, disk)
	return rows, translate(err, "update device status")
}

// orNaN stands for a metric that was left out: arrays of NULLs are slow to
// encode.
func orNaN(v *float64) float64 {
	if v == nil {
		return math.NaN()
	}
	return *v
}

// beatsSample keeps the rows that are the first of their minute.
func beatsSample(ctx context.Context, tx *sqlx.Tx, rows []beatRow) (err error) {
	var at time.Time
	if err := tx.GetContext(ctx, &at, `SELECT now()`); err != nil {
		return translate(err, "read the clock")
	}
	stmt, err := tx.PrepareContext(ctx, `COPY heartbeats (device_id, at, status, uptime_s, cpu_pct, memory_mb, disk_pct) FROM STDIN`)
	if err != nil {
		return translate(err, "begin to copy heartbeats")
	}
	for _, r := range rows {
		if !r.Sample {
			continue
		}
		if _, err := stmt.ExecContext(ctx, r.DeviceID, at, r.Health, r.UptimeS, r.CPUPct, r.MemoryMB, r.DiskPct); err != nil {
			_ = stmt.Close() // the copy's own error says more
			return translate(err, "copy heartbeats")
		}
	}
	if _, err := stmt.ExecContext(ctx); err != nil {
		_ = stmt.Close()
		return translate(err, "copy heartbeats")
	}
	return translate(stmt.Close(), "end the copy of heartbeats")
}

// beatsGone marks the devices offline whose current session ended, and returns
// those that were online.
func beatsGone(ctx context.Context, tx *sqlx.Tx, beats []fleet.Beat) ([]string, error) {
	var device pq.StringArray
	var session pq.Int64Array
	for _, b := range beats {
		if b.Gone > 0 {
			device, session = append(device, b.DeviceID), append(session, b.Gone)
		}
	}
	if len(device) == 0 {
		return nil, nil
	}
	var gone []string
	err := tx.SelectContext(ctx, &gone, `WITH b AS (SELECT * FROM unnest($1::text[], $2::bigint[]) AS b (device_id, session)),
		old AS (SELECT s.device_id, s.online FROM device_status s JOIN b ON b.device_id = s.device_id),
		new AS (UPDATE device_status s SET online = false, session = b.session, seq = $3, boot = CASE WHEN b.session > s.session THEN '' ELSE s.boot END
			FROM b WHERE s.device_id = b.device_id AND b.session >= s.session AND NOT (b.session = s.session AND s.seq = $3) RETURNING s.device_id)
		SELECT new.device_id FROM new JOIN old ON old.device_id = new.device_id WHERE old.online`, device, session, int64(sessionOver))
	return gone, translate(err, "mark devices offline")
}

// commandsDueBack makes every open command of devices that came back due.
func commandsDueBack(ctx context.Context, tx *sqlx.Tx, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	res, err := tx.ExecContext(ctx, `UPDATE commands SET next_send_at = now() WHERE id IN (
		SELECT id FROM commands WHERE device_id = ANY($1) AND status = 'open' ORDER BY device_id, id FOR NO KEY UPDATE)`, pq.Array(devices))
	if err != nil {
		return translate(err, "make commands due")
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	return notify(ctx, tx, WorkDispatch)
}

// SettleDevices writes one event each for devices whose events were held back:
// what they are now.
func (d *DB) SettleDevices(ctx context.Context, devices []string) error {
	return d.tx(ctx, func(tx *sqlx.Tx) error {
		var rows []struct {
			DeviceID string `db:"device_id"`
			Online   bool   `db:"online"`
			Health   string `db:"health"`
		}
		if err := tx.SelectContext(ctx, &rows, `SELECT device_id, online, health FROM device_status WHERE device_id = ANY($1)`, pq.Array(devices)); err != nil {
			return translate(err, "read device status")
		}
		var events reportEvents
		for _, r := range rows {
			typ := fleet.EventDeviceOffline
			if r.Online {
				typ = fleet.EventDeviceOnline
			}
			events.add(typ, r.DeviceID, map[string]any{"health": r.Health, "settled": true})
		}
		return events.write(ctx, tx)
	})
}

// SweepOffline marks devices offline that were silent for longer than their
// heartbeat interval and timeout, of the desired configuration and of the one
// they last confirmed. Silence counts from the last start or outage at the
// earliest, and while the engine's clock is not watched nobody is marked.
func (d *DB) SweepOffline(ctx context.Context, allow func(deviceID string) bool) (n int, err error) {
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		n = 0
		if _, err := tx.ExecContext(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
			return translate(err, "relax the commit")
		}
		clock, err := engineNow(ctx, tx)
		if err != nil || !clock.mayExpire(0) {
			return err
		}
		var gone []string
		if err := tx.SelectContext(ctx, &gone, `UPDATE device_status s SET online = false WHERE s.device_id IN (
				SELECT o.device_id FROM device_status o LEFT JOIN device_configs c ON c.device_id = o.device_id
				WHERE o.online AND greatest(o.last_seen, $1) < now() - make_interval(secs => COALESCE(c.heartbeat_interval_s + c.heartbeat_timeout_s, 90))
				AND greatest(o.last_seen, $1) < now() - make_interval(secs => COALESCE((SELECT (v.config->>'heartbeat_interval_s')::int + (v.config->>'heartbeat_timeout_s')::int
					FROM device_config_versions v WHERE v.device_id = o.device_id AND v.version = greatest(o.config_version, 1)), 0))
				LIMIT 5000 FOR UPDATE OF o SKIP LOCKED)
			RETURNING s.device_id`, clock.Since); err != nil {
			return translate(err, "sweep silent devices")
		}
		var events reportEvents
		for _, id := range gone {
			if allow(id) {
				events.add(fleet.EventDeviceOffline, id, map[string]any{"reason": "silent"})
			}
		}
		n = len(gone)
		return events.write(ctx, tx)
	})
	return n, err
}
