package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// partitioned are the tables that have a partition a day (UTC), called
// TABLE_YYYYMMDD, and the column by which.
var partitioned = []struct{ table, column string }{{"heartbeats", "at"}, {"device_logs", "received_at"}}

// EnsurePartitions makes the partitions of today and of so many days ahead.
// Rows of such a day that landed in the default partition move.
func (d *DB) EnsurePartitions(ctx context.Context, ahead int) error {
	now, err := d.Now(ctx)
	if err != nil {
		return err
	}
	for i := range ahead + 1 {
		day := now.UTC().Truncate(24*time.Hour).AddDate(0, 0, i)
		for _, p := range partitioned {
			if err := d.partitionEnsure(ctx, p.table, p.column, day); err != nil {
				return fmt.Errorf("partition of %s for %s: %w", p.table, day.Format(time.DateOnly), err)
			}
		}
	}
	return nil
}

func (d *DB) partitionEnsure(ctx context.Context, table, column string, day time.Time) error {
	name := pq.QuoteIdentifier(table + "_" + day.Format("20060102"))
	from, to := pq.QuoteLiteral(day.Format(time.RFC3339)), pq.QuoteLiteral(day.AddDate(0, 0, 1).Format(time.RFC3339))
	return d.tx(ctx, func(tx *sqlx.Tx) error {
		var exists bool
		if err := tx.GetContext(ctx, &exists, `SELECT to_regclass($1) IS NOT NULL`, name); err != nil || exists {
			return translate(err, "look for the partition")
		}
		for _, q := range []string{
			// Nothing may wait long behind a lock that waits itself.
			`SET LOCAL lock_timeout = '5s'`,
			// Else a sample that is being written now lands there after the move.
			`LOCK TABLE heartbeats_default IN ACCESS EXCLUSIVE MODE`,
			`CREATE TABLE ` + name + ` (LIKE ` + table + ` INCLUDING ALL)`,
			`WITH m AS (DELETE FROM ` + table + `_default WHERE ` + column + ` >= ` + from + ` AND ` + column + ` < ` + to + ` RETURNING *) INSERT INTO ` + name + ` SELECT * FROM m`,
			`ALTER TABLE ` + table + ` ATTACH PARTITION ` + name + ` FOR VALUES FROM (` + from + `) TO (` + to + `)`,
		} {
			if _, err := tx.ExecContext(ctx, q); err != nil {
				return translate(err, "make the partition")
			}
		}
		return nil
	})
}

// DropPartitions drops whole days of heartbeats and log lines that are older
// than keep.
func (d *DB) DropPartitions(ctx context.Context, keep time.Duration) (dropped int, err error) {
	now, err := d.Now(ctx)
	if err != nil {
		return 0, err
	}
	last := now.Add(-keep).UTC().AddDate(0, 0, -1).Format("20060102")
	for _, p := range partitioned {
		n, err := d.partitionsDrop(ctx, p.table, last)
		if dropped += n; err != nil {
			return dropped, err
		}
		if _, err := d.db.ExecContext(ctx, `DELETE FROM `+p.table+`_default WHERE `+p.column+` < now() - make_interval(secs => $1)`, keep.Seconds()); err != nil {
			return dropped, translate(err, "drop old rows of "+p.table)
		}
	}
	return dropped, nil
}

// partitionsDrop drops the partitions of a table up to that of the day last.
func (d *DB) partitionsDrop(ctx context.Context, table, last string) (dropped int, err error) {
	var names []string
	if err := d.db.SelectContext(ctx, &names, `SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = $1::text::regclass AND c.relname ~ ('^' || $1 || '_[0-9]{8}$') AND c.relname <= $1 || '_' || $2 ORDER BY 1`, table, last); err != nil {
		return 0, translate(err, "list old partitions")
	}
	for _, name := range names {
		err := d.tx(ctx, func(tx *sqlx.Tx) error {
			if _, err := tx.ExecContext(ctx, `SET LOCAL lock_timeout = '5s'`); err != nil {
				return translate(err, "bound the wait")
			}
			_, err := tx.ExecContext(ctx, `DROP TABLE `+pq.QuoteIdentifier(name))
			return translate(err, "drop partition "+name)
		})
		if err != nil {
			return dropped, err
		}
		dropped++
	}
	return dropped, nil
}

// purgeBatch bounds one DELETE, so that no transaction gets long.
const purgeBatch = 10000

// Purge removes what is too old: idempotency keys after a day, events after
// keepEvents (never the newest, whose number goes on), and closes commands that
// nobody can obey any more.
func (d *DB) Purge(ctx context.Context, keepEvents time.Duration) (removed int64, err error) {
	for _, q := range []struct {
		sql  string
		args []any
	}{
		{`DELETE FROM idempotency_keys WHERE (token_id, key) IN (SELECT token_id, key FROM idempotency_keys WHERE created_at < now() - interval '24 hours' LIMIT $1)`, []any{purgeBatch}},
		{`DELETE FROM events WHERE id IN (SELECT id FROM events WHERE at < now() - make_interval(secs => $2) AND number < (SELECT max(number) FROM events) ORDER BY id LIMIT $1)`,
			[]any{purgeBatch, keepEvents.Seconds()}},
		{`UPDATE commands SET status = 'expired', closed_at = now() WHERE id IN (SELECT c.id FROM commands c WHERE c.status = 'open' AND c.not_after < now() - interval '1 hour'
			AND NOT EXISTS (SELECT 1 FROM deployment_targets t WHERE t.command_id = c.id) LIMIT $1)`, []any{purgeBatch}},
	} {
		for {
			res, err := d.db.ExecContext(ctx, q.sql, q.args...)
			if err != nil {
				return removed, translate(err, "purge")
			}
			n, err := res.RowsAffected()
			if err != nil {
				return removed, translate(err, "purge")
			}
			removed += n
			if n < purgeBatch {
				break
			}
		}
	}
	return removed, nil
}
