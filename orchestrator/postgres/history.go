package postgres

import (
	"context"
	"fmt"
	"strconv"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// historyRow is one line of a device's history with its place in the order.
type historyRow struct {
	ID int64 `db:"id"`
	fleet.HistoryEntry
}

// History returns what a device went through, newest first.
func (d *DB) History(ctx context.Context, id string, scope fleet.Selector, p fleet.Page) (fleet.List[fleet.HistoryEntry], error) {
	var list fleet.List[fleet.HistoryEntry]
	if _, err := d.Device(ctx, id, scope); err != nil {
		return list, err
	}
	w := &where{}
	w.and("h.device_id = %s", id)
	var total int
	if err := d.db.GetContext(ctx, &total, `SELECT count(*) FROM device_bundle_history h`+w.sql(), w.args...); err != nil {
		return list, translate(err, "count history")
	}
	if err := w.cursorID("h.id", p.Cursor); err != nil {
		return list, err
	}
	var rows []historyRow
	q := `SELECT h.id, h.bundle_id, b.name AS bundle_name, b.version AS bundle_version, h.deployment_id, COALESCE(dep.kind, 'deploy') AS kind,
		h.status, h.error, h.late, h.deployed_at, h.duration_s
		FROM device_bundle_history h JOIN bundles b ON b.id = h.bundle_id LEFT JOIN deployments dep ON dep.id = h.deployment_id` +
		w.sql() + ` ORDER BY h.id DESC LIMIT ` + w.arg(p.Limit+1)
	if err := d.db.SelectContext(ctx, &rows, q, w.args...); err != nil {
		return list, translate(err, "read history")
	}
	page := cut(rows, p.Limit, total, func(r historyRow) string { return cursorText(strconv.FormatInt(r.ID, 10)) })
	list = fleet.List[fleet.HistoryEntry]{Items: []fleet.HistoryEntry{}, NextCursor: page.NextCursor, Total: total}
	for _, r := range page.Items {
		r.DeployedAt = r.DeployedAt.UTC()
		list.Items = append(list.Items, r.HistoryEntry)
	}
	return list, nil
}

// Heartbeats returns a device's samples, newest first, averaged over f.Step if
// that is set.
func (d *DB) Heartbeats(ctx context.Context, id string, scope fleet.Selector, f fleet.HeartbeatFilter) ([]fleet.Heartbeat, error) {
	if _, err := d.Device(ctx, id, scope); err != nil {
		return nil, err
	}
	w := &where{}
	w.and("device_id = %s", id)
	if !f.From.IsZero() {
		w.and("at >= %s", f.From)
	}
	if !f.To.IsZero() {
		w.and("at < %s", f.To)
	}
	q := `SELECT at, status, uptime_s, cpu_pct, memory_mb, disk_pct FROM heartbeats` + w.sql() + ` ORDER BY at DESC`
	if f.Step > 0 {
		step := w.arg(fmt.Sprintf("%d microseconds", f.Step.Microseconds()))
		// The worst status of a span is its status.
		q = `SELECT date_bin(` + step + `::interval, at, 'epoch') AS at,
			CASE WHEN bool_or(status = 'error') THEN 'error' WHEN bool_or(status = 'degraded') THEN 'degraded' ELSE max(status) END AS status,
			max(uptime_s) AS uptime_s, avg(cpu_pct) AS cpu_pct, avg(memory_mb) AS memory_mb, avg(disk_pct) AS disk_pct
			FROM heartbeats` + w.sql() + ` GROUP BY 1 ORDER BY 1 DESC`
	}
	q += ` LIMIT ` + w.arg(f.Limit)
	rows := []fleet.Heartbeat{}
	if err := d.db.SelectContext(ctx, &rows, q, w.args...); err != nil {
		return nil, translate(err, "read heartbeats")
	}
	for i := range rows {
		rows[i].At = rows[i].At.UTC()
	}
	return rows, nil
}
