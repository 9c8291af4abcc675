package postgres

import (
	"context"
	"time"

	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// ReturnCommands gives back claims whose delivery did not begin, because a part
// that it needs is away: they are due again after a wait, and the backoff, which
// is for devices that do not answer, does not grow. A claim that another one has
// replaced, and a command that ended, stay as they are.
func (d *DB) ReturnCommands(ctx context.Context, claims []fleet.Command, after time.Duration) error {
	ids, generations := make([]string, len(claims)), make([]int64, len(claims))
	for i, c := range claims {
		ids[i], generations[i] = c.ID, c.Generation
	}
	_, err := d.db.ExecContext(ctx, `UPDATE commands c SET sends = greatest(c.sends - 1, 0), next_send_at = least(c.next_send_at, now() + make_interval(secs => $3))
		FROM unnest($1::text[], $2::bigint[]) AS r (id, generation)
		WHERE c.id = r.id AND c.generation = r.generation AND c.status = 'open'`, pq.Array(ids), pq.Array(generations), after.Seconds())
	return translate(err, "return commands")
}
