package postgres

import (
	"context"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// commandsEnded makes commands due that a device has confirmed and that, by its
// report, it is not working on any more. Their result was acknowledged and is
// gone: this database was restored from a backup. Sent again, the device answers
// with the result that it keeps. A result that is only slower than the report
// has the first backoff to arrive.
func commandsEnded(ctx context.Context, tx *sqlx.Tx, id string, s protocol.State) error {
	if s.LastCommand == "" {
		return nil // it does not say
	}
	working := s.LastCommand
	if fleet.TargetState(s.LastCommandState).Final() {
		working = ""
	}
	_, err := tx.ExecContext(ctx, `UPDATE commands SET next_send_at = now() + make_interval(secs => $3)
		WHERE device_id = $1 AND status = 'open' AND received_at IS NOT NULL AND next_send_at = 'infinity' AND id <> $2`,
		id, working, commandBackoff.Seconds())
	return translate(err, "make ended commands due")
}
