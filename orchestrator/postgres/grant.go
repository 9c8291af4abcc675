package postgres

import (
	"context"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Grants is what became of credentials: which epoch a device's grants must
// have, and which API tokens are void.
type Grants struct {
	Devices map[string]int64 // by device id; -1: revoked
	Tokens  map[string]bool  // void ones by id
	Whole   bool             // Devices has every device: one that is missing does not exist
}

// Holds reports whether a grant with this id and epoch still stands.
func (g Grants) Holds(device bool, id string, epoch int64) bool {
	if !device {
		return !g.Tokens[id]
	}
	now, known := g.Devices[id]
	return known && now == epoch || !known && !g.Whole
}

// GrantsChanged returns the credentials that changed after since, judged by the
// database's clock; the zero time asks for all of them.
func (d *DB) GrantsChanged(ctx context.Context, since time.Time) (Grants, error) {
	g := Grants{Devices: map[string]int64{}, Tokens: map[string]bool{}, Whole: since.IsZero()}
	rows, err := d.db.QueryxContext(ctx, `SELECT id, CASE status WHEN 'revoked' THEN -1 ELSE auth_epoch END FROM devices WHERE $1::timestamptz IS NULL OR updated_at > $1`, nullTime(since))
	if err != nil {
		return g, translate(err, "read changed credentials")
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var epoch int64
		if err := rows.Scan(&id, &epoch); err != nil {
			return g, translate(err, "read changed credentials")
		}
		g.Devices[id] = epoch
	}
	if err := rows.Err(); err != nil {
		return g, translate(err, "read changed credentials")
	}
	var void []string
	if err := d.db.SelectContext(ctx, &void, `SELECT id FROM api_tokens WHERE role IN ($1, $2) AND (revoked_at IS NOT NULL OR expires_at <= now())`, fleet.RoleMonitor, fleet.RoleService); err != nil {
		return g, translate(err, "read void tokens")
	}
	for _, id := range void {
		g.Tokens[id] = true
	}
	return g, nil
}

func nullTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
