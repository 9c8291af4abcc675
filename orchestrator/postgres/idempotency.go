package postgres

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// onceKeep is how long an Idempotency-Key is remembered, and onceSweep how many
// older ones a new one removes, so that the table stays small by itself.
const (
	onceKeep  = "24 hours"
	onceSweep = 20
)

// Replay returns the answer that was stored for o: the status and the JSON
// body. found is false when the request has not been done. The same key with
// another request is fleet.CodeIdempotency.
func (d *DB) Replay(ctx context.Context, o fleet.Once) (status int, body []byte, found bool, err error) {
	var row struct {
		Request  []byte `db:"request"`
		Status   int    `db:"status"`
		Response []byte `db:"response"`
	}
	err = d.db.GetContext(ctx, &row, `SELECT request, status, response FROM idempotency_keys WHERE token_id = $1 AND key = $2`, o.TokenID, o.Key)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return 0, nil, false, nil
	case err != nil:
		return 0, nil, false, translate(err, "read idempotency key")
	case string(row.Request) != string(o.Request[:]):
		return 0, nil, false, fleet.Errorf(fleet.CodeIdempotency, "Idempotency-Key %q was used for another request", o.Key)
	}
	return row.Status, row.Response, true, nil
}

// onceDone stores the answer of a request that carries a key, in the
// transaction that does its work: after a crash either both are there or
// neither. A concurrent request with the same key waits here for the other
// one's commit and then changes nothing.
func onceDone(ctx context.Context, tx *sqlx.Tx, status int, answer any) error {
	o, ok := fleet.OnceFrom(ctx)
	if !ok {
		return nil
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	res, err := tx.ExecContext(ctx, `INSERT INTO idempotency_keys (token_id, key, request, status, response) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (token_id, key) DO NOTHING`, o.TokenID, o.Key, o.Request[:], status, b)
	if err != nil {
		return translate(err, "store idempotency key")
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return fleet.Wrap(fleet.CodeConflict, fleet.ErrRepeated, "a request with this Idempotency-Key has just been done; send it again to get its answer")
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM idempotency_keys WHERE (token_id, key) IN (
		SELECT token_id, key FROM idempotency_keys WHERE created_at < now() - $1::interval
		ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED)`, onceKeep, onceSweep)
	return translate(err, "forget old idempotency keys")
}
