package postgres

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// How long a command may wait for its device. Whoever asks for lines or for a
// restart waits for it; later neither is wanted any more.
const (
	logsNotAfter    = 2 * time.Minute
	restartNotAfter = 10 * time.Minute
)

// StoreLogs keeps lines in their order, those of devices that may send any. It
// does not wait for the disk: they are worth no more than the program's output
// that never got here.
func (d *DB) StoreLogs(ctx context.Context, devices []string, batches []protocol.Log) error {
	var device, level, source, message pq.StringArray
	var at pq.Int64Array
	for i, b := range batches {
		for _, l := range b.Lines {
			device, level, source = append(device, devices[i]), append(level, l.Level), append(source, l.Source)
			at, message = append(at, l.Time), append(message, l.Message)
		}
	}
	return d.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `SET LOCAL synchronous_commit = off`); err != nil {
			return translate(err, "relax the commit")
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO device_logs (device_id, at, level, source, message)
			SELECT u.device_id, to_timestamp(u.at / 1000.0), u.level, u.source, u.message
			FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY AS u (device_id, at, level, source, message, n)
			JOIN devices d ON d.id = u.device_id AND d.status = 'active' ORDER BY u.n`, device, at, level, source, message)
		return translate(err, "store log lines")
	})
}

// logLevels are the stored levels that a filter lets through.
var logLevels = map[string][]string{
	"debug": {"", "debug", "info", "warn", "error"},
	"info":  {"", "info", "warn", "error"},
	"warn":  {"warn", "error"},
	"error": {"error"},
}

type logRow struct {
	ID         int64     `db:"id"`
	At         time.Time `db:"at"`
	ReceivedAt time.Time `db:"received_at"`
	Level      string    `db:"level"`
	Source     string    `db:"source"`
	Message    string    `db:"message"`
}

// Logs lists a device's lines. With f.After they come oldest first, and Total is
// what the page has: whoever follows does not count.
func (d *DB) Logs(ctx context.Context, id string, scope fleet.Selector, f fleet.LogFilter, p fleet.Page) (fleet.List[fleet.LogLine], error) {
	list := fleet.List[fleet.LogLine]{Items: []fleet.LogLine{}}
	if _, err := d.Device(ctx, id, scope); err != nil {
		return list, err
	}
	w := &where{}
	w.and("device_id = %s", id)
	if f.Level != "" {
		w.and("level = ANY(%s)", pq.Array(logLevels[f.Level]))
	}
	if !f.From.IsZero() {
		w.and("at >= %s", f.From)
	}
	if !f.To.IsZero() {
		w.and("at < %s", f.To)
	}
	order := "DESC"
	if f.After != "" {
		after, err := strconv.ParseInt(f.After, 10, 64)
		if err != nil || after < 0 {
			return list, fleet.Errorf(fleet.CodeInvalid, "after %.40q is no line's id", f.After)
		}
		w.and("id > %s", after)
		order = "ASC"
	} else if err := d.db.GetContext(ctx, &list.Total, `SELECT count(*) FROM device_logs`+w.sql(), w.args...); err != nil {
		return list, translate(err, "count log lines")
	}
	if err := w.cursorID("id", p.Cursor); err != nil {
		return list, err
	}
	var rows []logRow
	if err := d.db.SelectContext(ctx, &rows, `SELECT id, at, received_at, level, source, message FROM device_logs`+w.sql()+
		` ORDER BY id `+order+` LIMIT `+w.arg(p.Limit+1), w.args...); err != nil {
		return list, translate(err, "read log lines")
	}
	if len(rows) > p.Limit {
		rows = rows[:p.Limit]
		if f.After == "" {
			list.NextCursor = cursorText(strconv.FormatInt(rows[p.Limit-1].ID, 10))
		}
	}
	for _, r := range rows {
		list.Items = append(list.Items, fleet.LogLine{
			ID: strconv.FormatInt(r.ID, 10), At: r.At.UTC(), ReceivedAt: r.ReceivedAt.UTC(), Level: r.Level, Source: r.Source, Message: r.Message,
		})
	}
	if f.After != "" {
		list.Total = len(list.Items)
	}
	return list, nil
}

// AskLogs tells a device to send lines. A request that it has not heard of yet
// gives way to this one.
func (d *DB) AskLogs(ctx context.Context, id string, r fleet.LogRequest, scope fleet.Selector, by fleet.Actor) (fleet.CommandRef, error) {
	body := protocol.Logs{Lines: r.Lines, FollowS: r.FollowS}
	if r.Since != nil {
		body.Since = max(r.Since.UnixMilli(), 0)
	}
	return d.errand(ctx, id, protocol.CommandLogs, logsNotAfter, body, "device.logs", scope, by)
}

// RestartProgram tells a device to start its bundle's program anew.
func (d *DB) RestartProgram(ctx context.Context, id string, scope fleet.Selector, by fleet.Actor) (fleet.CommandRef, error) {
	return d.errand(ctx, id, protocol.CommandRestart, restartNotAfter, nil, "device.restart", scope, by)
}

// errand opens a command for a device that is there to do it now. An older one
// of the same type that has not been done is closed.
func (d *DB) errand(ctx context.Context, id string, typ protocol.CommandType, life time.Duration, body any, action string, scope fleet.Selector, by fleet.Actor) (fleet.CommandRef, error) {
	var ref fleet.CommandRef
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		dev, err := deviceGet(ctx, tx, id, scope, " FOR UPDATE OF d")
		if err != nil {
			return err
		}
		if dev.Status != "online" && dev.Status != "error" {
			return fleet.Errorf(fleet.CodeConflict, "device %q is %s and cannot do that now", id, dev.Status)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE commands SET status = 'cancelled', closed_at = now() WHERE device_id = $1 AND type = $2 AND status = 'open'`, id, typ); err != nil {
			return translate(err, "close older command")
		}
		var until time.Time
		if err := tx.GetContext(ctx, &until, `SELECT now() + make_interval(secs => $1)`, life.Seconds()); err != nil {
			return translate(err, "read the clock")
		}
		ids, err := commandAdd(ctx, tx, string(typ), []commandNew{{device: id, body: body}}, until)
		if err != nil {
			return err
		}
		ref.Command = ids[id]
		if err := audit(ctx, tx, by, action, id, nil, body); err != nil {
			return err
		}
		return onceDone(ctx, tx, http.StatusAccepted, ref)
	})
	return ref, err
}
