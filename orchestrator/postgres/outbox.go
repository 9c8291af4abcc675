package postgres

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// AcquireLease takes or renews the lease called name for holder; ok is false
// while another holder has it. The generation rises with every change of
// holder and fences writes of the one before.
func (d *DB) AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (generation int64, ok bool, err error) {
	err = d.db.GetContext(ctx, &generation, `INSERT INTO leases (name, holder, generation, until) VALUES ($1, $2, 1, now() + make_interval(secs => $3))
		ON CONFLICT (name) DO UPDATE SET holder = $2, until = now() + make_interval(secs => $3),
			generation = leases.generation + CASE WHEN leases.holder = $2 THEN 0 ELSE 1 END
		WHERE leases.holder = $2 OR leases.until <= now() RETURNING generation`, name, holder, ttl.Seconds())
	if errors.Is(err, sql.ErrNoRows) {
		return 0, false, nil
	}
	return generation, err == nil, translate(err, "acquire lease")
}

// ReleaseLease gives a lease up, so that the next holder need not wait.
func (d *DB) ReleaseLease(ctx context.Context, name, holder string) error {
	_, err := d.db.ExecContext(ctx, `UPDATE leases SET until = '-infinity' WHERE name = $1 AND holder = $2`, name, holder)
	return translate(err, "release lease")
}

// fenced locks the lease in tx if generation is still the current one.
func fenced(ctx context.Context, tx *sqlx.Tx, name string, generation int64) error {
	var held bool
	err := tx.GetContext(ctx, &held, `SELECT true FROM leases WHERE name = $1 AND generation = $2 AND until > now() FOR UPDATE`, name, generation)
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.Errorf(fleet.CodeConflict, "lease %s of generation %d is over", name, generation)
	}
	return translate(err, "check lease")
}

// LeaseEvents is the lease of the one publisher that numbers events.
const LeaseEvents = "events"

// NumberEvents gives at most limit committed events their numbers, in the order
// in which they were written, and returns how many. With a lease that is over
// it changes nothing: fleet.CodeConflict.
func (d *DB) NumberEvents(ctx context.Context, generation int64, limit int) (n int, err error) {
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		n = 0
		var waiting bool
		if err := tx.GetContext(ctx, &waiting, `SELECT EXISTS (SELECT 1 FROM events WHERE number IS NULL)`); err != nil || !waiting {
			return translate(err, "look for events")
		}
		if err := fenced(ctx, tx, LeaseEvents, generation); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, `UPDATE events e SET number = b.base + b.n FROM (
				SELECT id, row_number() OVER (ORDER BY id) AS n, (SELECT COALESCE(max(number), 0) FROM events) AS base
				FROM (SELECT id FROM events WHERE number IS NULL ORDER BY id LIMIT $1) w) b WHERE e.id = b.id`, limit)
		if err != nil {
			return translate(err, "number events")
		}
		count, err := res.RowsAffected()
		if err != nil || count == 0 {
			return translate(err, "number events")
		}
		n = int(count)
		return notify(ctx, tx, WorkEvents) // those who follow the numbers
	})
	return n, err
}

// PublishedEvents returns the number up to which events were published.
func (d *DB) PublishedEvents(ctx context.Context) (int64, error) {
	var n int64
	err := d.db.GetContext(ctx, &n, `SELECT COALESCE((SELECT (value #>> '{}')::bigint FROM settings WHERE name = 'events_published'), 0)`)
	return n, translate(err, "read the published events")
}

// SetPublishedEvents stores that events were published up to number.
func (d *DB) SetPublishedEvents(ctx context.Context, generation, number int64) error {
	return d.tx(ctx, func(tx *sqlx.Tx) error {
		if err := fenced(ctx, tx, LeaseEvents, generation); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES ('events_published', to_jsonb($1::bigint))
			ON CONFLICT (name) DO UPDATE SET value = to_jsonb($1::bigint), updated_at = now()`, number)
		return translate(err, "store the published events")
	})
}
