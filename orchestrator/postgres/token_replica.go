package postgres

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// ReplicaToken makes an API token of role service with which an orchestrator
// logs in to the broker, valid for life. Tokens that other calls made under any
// replica's name and that ended more than a day ago are removed: nobody else
// looks after them.
func (d *DB) ReplicaToken(ctx context.Context, name string, life time.Duration) (secret string, err error) {
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM api_tokens WHERE role = $1 AND created_by = $2 AND expires_at < now() - interval '1 day'`,
			fleet.RoleService, fleet.System.Name); err != nil {
			return translate(err, "remove old replica tokens")
		}
		var end time.Time
		if err := tx.GetContext(ctx, &end, `SELECT now() + $1 * interval '1 second'`, int64(life/time.Second)); err != nil {
			return translate(err, "read the clock")
		}
		_, secret, err = tokenInsert(ctx, tx, fleet.NewToken{Name: name, Role: fleet.RoleService, ExpiresAt: &end}, fleet.System)
		return err
	})
	return secret, err
}

// Away reports whether an error of Open means that the server does not answer
// yet, and not that what it was asked is wrong: the same call may work later.
func Away(err error) bool {
	return fleet.ErrorCode(translate(err, "connect")) == fleet.CodeUnavailable || errors.Is(err, io.EOF)
}
