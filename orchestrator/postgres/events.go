package postgres

import (
	"context"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// EventsAfter returns numbered events above after, in order, as far as a scope
// and a selector let them be seen, and the number up to which it looked, at
// most limit events further. Without either every event is seen; with one,
// those of devices that match it, deployments that have one of them, and
// bundles.
func (d *DB) EventsAfter(ctx context.Context, after int64, scope, selector fleet.Selector, limit int) (events []fleet.Event, upTo int64, err error) {
	inner, dep := &where{}, &where{}
	inner.args = []any{after, limit}
	inner.selector("d.labels", scope)
	inner.selector("d.labels", selector)
	dep.args = inner.args
	dep.selector("d.labels", scope)
	dep.selector("d.labels", selector)
	visible := "true"
	if len(inner.conds) > 0 {
		visible = `CASE WHEN e.device_id <> '' THEN EXISTS (SELECT 1 FROM devices d` + inner.sql() + ` AND d.id = e.device_id)
			WHEN e.type LIKE 'kernex.deployment.%' THEN EXISTS (SELECT 1 FROM deployment_targets t JOIN devices d ON d.id = t.device_id` + dep.sql() + ` AND t.deployment_id = e.subject)
			ELSE true END`
	}
	var rows []struct {
		Number   int64     `db:"number"`
		At       time.Time `db:"at"`
		Type     string    `db:"type"`
		Subject  string    `db:"subject"`
		DeviceID string    `db:"device_id"`
		Data     []byte    `db:"data"`
		Visible  bool      `db:"visible"`
	}
	if err := d.db.SelectContext(ctx, &rows, `SELECT e.number, e.at, e.type, e.subject, e.device_id, e.data, `+visible+` AS visible
		FROM events e WHERE e.number > $1 ORDER BY e.number LIMIT $2`, dep.args...); err != nil {
		return nil, after, translate(err, "read events")
	}
	upTo = after
	for _, r := range rows {
		upTo = r.Number
		if r.Visible {
			events = append(events, fleet.Event{Number: r.Number, At: r.At.UTC(), Type: r.Type, Subject: r.Subject, DeviceID: r.DeviceID, Data: r.Data})
		}
	}
	return events, upTo, nil
}

// LastEvent returns the number of the newest numbered event, 0 before the first.
func (d *DB) LastEvent(ctx context.Context) (int64, error) {
	var n int64
	err := d.db.GetContext(ctx, &n, `SELECT COALESCE(max(number), 0) FROM events`)
	return n, translate(err, "read the last event's number")
}
