package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// maxTrustBytes bounds what a trust command says, so that its signed form stays
// below a command's cap: about 16 keys.
const maxTrustBytes = 11 << 10

// trustWanted is what every device should trust; ok is false while there is
// nothing that a device does not take for granted.
func trustWanted(ctx context.Context, q sqlx.QueryerContext) (body protocol.Trust, ok bool, err error) {
	all, rows, err := releaseKeys(ctx, q)
	if err != nil {
		return body, false, err
	}
	body.Mode = all.Mode
	for _, r := range rows {
		body.Keys = append(body.Keys, protocol.TrustKey{File: r.File, Signature: r.Signature})
		if r.RevokedAt != nil {
			body.Revoked = append(body.Revoked, r.ID)
		}
	}
	if body.CommandKey, err = commandKeyWanted(ctx, q); err != nil {
		return body, false, err
	}
	text, err := json.Marshal(body)
	if err != nil {
		return body, false, fmt.Errorf("encode trust: %w", err)
	}
	if len(text) > maxTrustBytes {
		return body, false, fleet.Errorf(fleet.CodeTooLarge, "%d release keys do not fit into one command, revoked ones counted: the fleet needs a reset of its trust (docs/deployment-guide.md)", len(rows))
	}
	return body, len(rows) > 0 || body.CommandKey != "", nil
}

// commandKeyWanted is the command key that devices should come to pin, "" while
// it is the one that they have.
func commandKeyWanted(ctx context.Context, q sqlx.QueryerContext) (string, error) {
	var keys []string
	err := sqlx.SelectContext(ctx, q, &keys, `SELECT value #>> '{}' FROM settings WHERE name = 'next_command_key'`)
	if err != nil || len(keys) == 0 {
		return "", translate(err, "read the next command key")
	}
	return keys[0], nil
}

// trustLife is as configNotAfter: what is to be trusted does not grow old by
// itself.
const trustLife = configNotAfter

// trustBatch is how many devices one statement tells.
const trustBatch = 2000

// trustCommands closes the open trust commands and opens new ones, for one
// device or, when device is "", for all that may get commands.
func trustCommands(ctx context.Context, tx *sqlx.Tx, device string) error {
	body, ok, err := trustWanted(ctx, tx)
	if err != nil || !ok {
		return err
	}
	var ids []string
	if err := tx.SelectContext(ctx, &ids, `SELECT id FROM devices WHERE status = 'active' AND ($1 = '' OR id = $1) ORDER BY id FOR NO KEY UPDATE`, device); err != nil {
		return translate(err, "lock devices")
	}
	if _, err := tx.ExecContext(ctx, `UPDATE commands SET status = 'cancelled', closed_at = now() WHERE type = 'trust' AND status = 'open' AND ($1 = '' OR device_id = $1)`, device); err != nil {
		return translate(err, "close older trust commands")
	}
	var now time.Time
	if err := tx.GetContext(ctx, &now, `SELECT now()`); err != nil {
		return translate(err, "read the clock")
	}
	for len(ids) > 0 {
		n := min(len(ids), trustBatch)
		list := make([]commandNew, n)
		for i, id := range ids[:n] {
			list[i] = commandNew{device: id, body: body}
		}
		if _, err := commandAdd(ctx, tx, string(protocol.CommandTrust), list, now.Add(trustLife)); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// trustCatchUp opens a trust command for a device that reports to trust
// something else than it should, unless it is on its way or the device has just
// answered the same one: a device that refuses is not asked without end.
func trustCatchUp(ctx context.Context, tx *sqlx.Tx, id string, s protocol.State) error {
	if s.TrustMode == "" {
		return nil // it knows nothing of trust
	}
	var want struct {
		Mode       string `db:"mode"`
		Keys       string `db:"keys"`
		CommandKey string `db:"command_key"`
	}
	if err := tx.GetContext(ctx, &want, `SELECT CASE WHEN count(*) = 0 THEN 'open' ELSE 'required' END AS mode,
		COALESCE(string_agg(id, ' ' ORDER BY id) FILTER (WHERE revoked_at IS NULL), '') AS keys,
		COALESCE((SELECT value #>> '{}' FROM settings WHERE name = 'next_command_key'), '') AS command_key FROM release_keys`); err != nil {
		return translate(err, "read what is trusted")
	}
	same := s.TrustMode == want.Mode && trustKeys(s) == want.Keys
	if want.Mode == fleet.TrustOpen {
		same = true // nothing could be asked of it
	}
	if same && (want.CommandKey == "" || want.CommandKey == s.CommandKey) {
		return nil
	}
	body, ok, err := trustWanted(ctx, tx)
	if err != nil || !ok {
		return err
	}
	js, err := jsonOrNull(body)
	if err != nil {
		return err
	}
	var told bool
	if err := tx.GetContext(ctx, &told, `SELECT EXISTS (SELECT 1 FROM commands WHERE device_id = $1 AND type = 'trust' AND body = $2::jsonb
		AND (status = 'open' AND not_after > now() OR status = 'done' AND closed_at > now() - interval '1 hour'))`, id, js); err != nil {
		return translate(err, "look for trust commands")
	}
	if told {
		return nil
	}
	return trustCommands(ctx, tx, id)
}

// TrustState is the fleet's trust in numbers.
type TrustState struct {
	Mode             string `db:"mode"`
	NextCommandKey   string `db:"next_command_key"`   // what devices are to pin; "" is what they have
	OtherCommandKeys int    `db:"other_command_keys"` // active devices that have said to pin another
}

// TrustState returns it.
func (d *DB) TrustState(ctx context.Context) (TrustState, error) {
	var t TrustState
	err := d.db.GetContext(ctx, &t, `SELECT CASE WHEN EXISTS (SELECT 1 FROM release_keys) THEN 'required' ELSE 'open' END AS mode, k.text AS next_command_key,
		CASE WHEN k.text = '' THEN 0 ELSE (SELECT count(*) FROM device_status s JOIN devices d ON d.id = s.device_id
			WHERE d.status = 'active' AND s.command_key NOT IN ('', k.text)) END AS other_command_keys
		FROM (SELECT COALESCE((SELECT value #>> '{}' FROM settings WHERE name = 'next_command_key'), '') AS text) k`)
	return t, translate(err, "read the state of trust")
}

// SetNextCommandKey makes every device pin another command key, told by a
// command that the old one signs. The same key again changes nothing.
func (d *DB) SetNextCommandKey(ctx context.Context, text string) error {
	return d.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := releaseKeysLocked(ctx, tx); err != nil {
			return err
		}
		before, err := commandKeyWanted(ctx, tx)
		if err != nil || before == text {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES ('next_command_key', to_jsonb($1::text))
			ON CONFLICT (name) DO UPDATE SET value = to_jsonb($1::text), updated_at = now()`, text); err != nil {
			return translate(err, "store the next command key")
		}
		if err := trustCommands(ctx, tx, ""); err != nil {
			return err
		}
		return audit(ctx, tx, fleet.System, "command_key.next", "fleet", map[string]any{"command_key": before}, map[string]any{"command_key": text})
	})
}
