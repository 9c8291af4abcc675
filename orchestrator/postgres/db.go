// Package postgres holds all SQL of Kernex: one file a noun, each method one
// transaction. Postgres is the truth; everything else is told about it.
package postgres

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// DB is a pool of connections to one Kernex database.
type DB struct {
	db *sqlx.DB
}

// Open connects to dsn with at most maxConns connections and proves that the
// server answers.
func Open(ctx context.Context, dsn string, maxConns int) (*DB, error) {
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		return nil, badDSN(err)
	}
	connector.Dialer(newDialer())
	db := sqlx.NewDb(sql.OpenDB(connector), "postgres")
	if err := db.PingContext(ctx); err != nil {
		_ = db.Close() // has no connection
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	db.SetMaxOpenConns(maxConns)
	db.SetMaxIdleConns(maxConns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return &DB{db: db}, nil
}

// badDSN says what is wrong with a connection string, but only where the driver
// names a setting: its other errors quote the string, password and all.
func badDSN(err error) error {
	if why, ok := strings.CutPrefix(err.Error(), "pq: "); ok {
		return fleet.Errorf(fleet.CodeInvalid, "connect to Postgres: %s", why)
	}
	return fleet.Errorf(fleet.CodeInvalid, "connect to Postgres: the connection string is neither a postgres:// URL nor a list of key=value pairs; in a URL, percent-encode what is special in the password")
}

// Close closes every connection.
func (d *DB) Close() error { return d.db.Close() }

// Ready proves that Postgres answers.
func (d *DB) Ready(ctx context.Context) error {
	return translate(d.db.PingContext(ctx), "ping Postgres")
}

// Now returns the database's clock, by which every deadline is judged.
func (d *DB) Now(ctx context.Context) (time.Time, error) {
	var now time.Time
	err := d.db.GetContext(ctx, &now, `SELECT now()`)
	return now, translate(err, "read the clock")
}

// tx runs fn in one transaction: commit on nil, else rollback. It is run again,
// at most 5 times, when Postgres asks for that (serialization failure,
// deadlock), so fn must not keep state between runs.
func (d *DB) tx(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	var err error
	for range 5 {
		if err = d.tryTx(ctx, fn); !retryable(err) {
			return err
		}
	}
	return err
}

func (d *DB) tryTx(ctx context.Context, fn func(tx *sqlx.Tx) error) error {
	tx, err := d.db.BeginTxx(ctx, nil)
	if err != nil {
		return translate(err, "begin transaction")
	}
	if err := fn(tx); err != nil {
		if rerr := tx.Rollback(); rerr != nil && !errors.Is(rerr, sql.ErrTxDone) {
			return errors.Join(err, fmt.Errorf("roll back: %w", rerr))
		}
		return err
	}
	return translate(tx.Commit(), "commit")
}

// audit records a change in the transaction that makes it.
func audit(ctx context.Context, tx *sqlx.Tx, by fleet.Actor, action, subject string, before, after any) error {
	b, err := jsonOrNull(before)
	if err != nil {
		return err
	}
	a, err := jsonOrNull(after)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO audit (actor, action, subject, before, after, remote) VALUES ($1, $2, $3, $4, $5, $6)`,
		by.Name, action, subject, b, a, by.Remote)
	return translate(err, "write audit row")
}

// The channel of NOTIFY and what its payload may be: which loop has work.
const (
	Channel      = "kernex"
	WorkRollout  = "rollout"
	WorkDispatch = "dispatch"
	WorkEvents   = "events"
	WorkKick     = "kick:" // + device id: its credential changed
)

// notify wakes the loops of every replica at commit.
func notify(ctx context.Context, tx *sqlx.Tx, work string) error {
	_, err := tx.ExecContext(ctx, `SELECT pg_notify($1, $2)`, Channel, work)
	return translate(err, "notify")
}

// event records what happened in the transaction that made it happen; the
// publisher numbers it after the commit.
func event(ctx context.Context, tx *sqlx.Tx, typ, subject, deviceID string, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("encode event %s: %w", typ, err)
	}
	if _, err = tx.ExecContext(ctx, `INSERT INTO events (type, subject, device_id, data) VALUES ($1, $2, $3, $4)`, typ, subject, deviceID, string(b)); err != nil {
		return translate(err, "write event")
	}
	return notify(ctx, tx, WorkEvents)
}

// jsonOrNull encodes v for a jsonb column; nil is SQL NULL. lib/pq sends
// []byte as bytea, so JSON goes as a string.
func jsonOrNull(v any) (*string, error) {
	if v == nil {
		return nil, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	s := string(b)
	return &s, nil
}
