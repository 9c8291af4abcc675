package postgres

import (
	"context"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// DeviceLogin returns what the broker needs to let a device in;
// fleet.CodeNotFound if there is no such device. The credential is the caller's
// to judge.
func (d *DB) DeviceLogin(ctx context.Context, id string) (fleet.DeviceLogin, error) {
	var l fleet.DeviceLogin
	err := d.db.QueryRowxContext(ctx, `SELECT public_key, key_type, status, auth_epoch FROM devices WHERE id = $1`, id).
		Scan(&l.PublicKey, &l.KeyType, &l.Credential, &l.Epoch)
	return l, translate(err, "read device login")
}

// FleetName returns the name of this installation, the audience of the tokens
// that devices sign. The first caller makes it; it never changes, because
// every device has it pinned.
func (d *DB) FleetName(ctx context.Context) (string, error) {
	if _, err := d.db.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES ('fleet', to_jsonb($1::text)) ON CONFLICT (name) DO NOTHING`, fleet.NewID("fleet")); err != nil {
		return "", translate(err, "make the fleet's name")
	}
	var name string
	err := d.db.GetContext(ctx, &name, `SELECT value #>> '{}' FROM settings WHERE name = 'fleet'`)
	return name, translate(err, "read the fleet's name")
}
