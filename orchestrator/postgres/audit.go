package postgres

import (
	"context"
	"encoding/json"
	"strconv"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Audit lists changes, newest first.
func (d *DB) Audit(ctx context.Context, f fleet.AuditFilter, p fleet.Page) (fleet.List[fleet.AuditEntry], error) {
	var list fleet.List[fleet.AuditEntry]
	w := &where{}
	for col, v := range map[string]string{"actor": f.Actor, "action": f.Action, "subject": f.Subject} {
		if v != "" {
			w.and(col+" = %s", v)
		}
	}
	var total int
	if err := d.db.GetContext(ctx, &total, `SELECT count(*) FROM audit`+w.sql(), w.args...); err != nil {
		return list, translate(err, "count audit entries")
	}
	if err := w.cursorID("id", p.Cursor); err != nil {
		return list, err
	}
	var rows []struct {
		ID      int64     `db:"id"`
		At      time.Time `db:"at"`
		Actor   string    `db:"actor"`
		Action  string    `db:"action"`
		Subject string    `db:"subject"`
		Before  []byte    `db:"before"`
		After   []byte    `db:"after"`
		Remote  string    `db:"remote"`
	}
	q := `SELECT id, at, actor, action, subject, before, after, remote FROM audit` + w.sql() + ` ORDER BY id DESC LIMIT ` + w.arg(p.Limit+1)
	if err := d.db.SelectContext(ctx, &rows, q, w.args...); err != nil {
		return list, translate(err, "list audit entries")
	}
	entries := make([]fleet.AuditEntry, 0, len(rows))
	for _, r := range rows {
		e := fleet.AuditEntry{ID: r.ID, At: r.At.UTC(), Actor: r.Actor, Action: r.Action, Subject: r.Subject, Remote: r.Remote}
		if r.Before != nil {
			e.Before = json.RawMessage(r.Before)
		}
		if r.After != nil {
			e.After = json.RawMessage(r.After)
		}
		entries = append(entries, e)
	}
	return cut(entries, p.Limit, total, func(e fleet.AuditEntry) string { return cursorText(strconv.FormatInt(e.ID, 10)) }), nil
}
