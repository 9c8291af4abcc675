package postgres

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// reportEvents collects the events of many devices to write them at once.
type reportEvents struct {
	types, subjects, devices, data pq.StringArray
	err                            error
}

// add notes an event whose subject is the device.
func (e *reportEvents) add(typ, device string, data any) { e.addAbout(typ, device, device, data) }

func (e *reportEvents) addAbout(typ, subject, device string, data any) {
	b, err := json.Marshal(data)
	if err != nil {
		e.err = fmt.Errorf("encode event %s: %w", typ, err)
		return
	}
	e.types, e.subjects, e.devices, e.data = append(e.types, typ), append(e.subjects, subject), append(e.devices, device), append(e.data, string(b))
}

func (e *reportEvents) write(ctx context.Context, tx *sqlx.Tx) error {
	if e.err != nil || len(e.types) == 0 {
		return e.err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO events (type, subject, device_id, data)
		SELECT b.type, b.subject, b.device_id, b.data::jsonb FROM unnest($1::text[], $2::text[], $3::text[], $4::text[])
		WITH ORDINALITY AS b (type, subject, device_id, data, n) ORDER BY b.n`, e.types, e.subjects, e.devices, e.data); err != nil {
		return translate(err, "write events")
	}
	return notify(ctx, tx, WorkEvents)
}
