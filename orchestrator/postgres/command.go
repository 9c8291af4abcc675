package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// commandNew is one command to open.
type commandNew struct {
	device string
	body   any
}

// maxHighestSeq is the highest seq that a device is believed to have seen, or
// one device's report could leave no number for the next command: the largest
// integer that every JSON reader holds exactly.
const maxHighestSeq = 1<<53 - 1

// commandAdd opens one command of a type for each device, due at once, and
// wakes dispatch; it returns the ids by device. life counts from now, notAfter
// (if not zero) is a moment. A seq is above every one that its device has seen;
// the devices' rows stay locked until the commit, so that seqs become visible
// in order. No two commands may be for one device.
func commandAdd(ctx context.Context, tx *sqlx.Tx, typ string, list []commandNew, notAfter time.Time) (map[string]string, error) {
	var devices, ids, bodies []string
	byDevice := make(map[string]string, len(list))
	for _, c := range list {
		b, err := json.Marshal(c.body)
		if err != nil {
			return nil, fmt.Errorf("encode %s command: %w", typ, err)
		}
		id := fleet.NewID("cmd")
		devices, ids, bodies = append(devices, c.device), append(ids, id), append(bodies, string(b))
		byDevice[c.device] = id
	}
	// Rows are locked in one order everywhere, or two replicas could deadlock.
	if _, err := tx.ExecContext(ctx, `SELECT 1 FROM devices WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE`, pq.Array(devices)); err != nil {
		return nil, translate(err, "lock devices")
	}
	res, err := tx.ExecContext(ctx, `WITH b AS (SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) AS b (device_id, id, body)),
		n AS (UPDATE devices d SET next_seq = greatest(d.next_seq, least(COALESCE(s.highest_seq, 0), $6) + 1) + 1
			FROM b LEFT JOIN device_status s ON s.device_id = b.device_id
			WHERE d.id = b.device_id RETURNING d.id, d.next_seq - 1 AS seq)
		INSERT INTO commands (id, device_id, seq, type, body, not_after)
		SELECT b.id, b.device_id, n.seq, $4, b.body::jsonb, $5 FROM b JOIN n ON n.id = b.device_id`,
		pq.Array(devices), pq.Array(ids), pq.Array(bodies), typ, notAfter, int64(maxHighestSeq))
	if err != nil {
		return nil, translate(err, "add commands")
	}
	if n, err := res.RowsAffected(); err != nil || int(n) != len(list) {
		return nil, fleet.Errorf(fleet.CodeInternal, "added %d of %d commands: %v", n, len(list), err)
	}
	return byDevice, notify(ctx, tx, WorkDispatch)
}

// commandClose ends a command if it is open; status is done, cancelled or
// expired.
func commandClose(ctx context.Context, tx *sqlx.Tx, id, status string) error {
	_, err := tx.ExecContext(ctx, `UPDATE commands SET status = $2, closed_at = now() WHERE id = $1 AND status = 'open'`, id, status)
	return translate(err, "close command")
}

// Backoff of deliveries, whose first step is less than the 10 s in which the work
// of a dead replica has to move, and how long a command of a device that is away is
// left alone: its return makes the command due anyway, this is for a lost
// wake-up only.
const (
	commandBackoff    = 8 * time.Second
	commandBackoffMax = 5 * time.Minute
)

// commandReady is what makes a command deliverable. A deploy command whose
// deployment is being cancelled and that no device has taken is not sent again.
const commandReady = `s.online AND d.status = 'active' AND (c.not_after > now() OR c.received_at IS NOT NULL)
	AND NOT EXISTS (SELECT 1 FROM deployment_targets t JOIN deployments p ON p.id = t.deployment_id
		WHERE t.command_id = c.id AND p.cancel AND t.state IN ('pending', 'offered'))`

// ClaimCommands takes at most limit due commands for delivery. The claim is the
// lease: next_send_at moves on by the backoff (8 s, doubling to 5 min), so
// that a claimer who dies costs one backoff. Commands of devices that are away
// are put off.
func (d *DB) ClaimCommands(ctx context.Context, limit int) ([]fleet.Command, error) {
	var out []fleet.Command
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		out = nil
		var due []string
		if err := tx.SelectContext(ctx, &due, `SELECT id FROM commands WHERE status = 'open' AND next_send_at <= now()
			ORDER BY next_send_at, seq LIMIT $1 FOR UPDATE SKIP LOCKED`, limit); err != nil {
			return translate(err, "find due commands")
		}
		if len(due) == 0 {
			return nil
		}
		// A second statement sees a device's return that was committed before
		// these rows were locked; one that commits later makes them due itself.
		var rows []commandRow
		if err := tx.SelectContext(ctx, &rows, `UPDATE commands c SET sends = c.sends + 1, generation = c.generation + 1,
				next_send_at = CASE WHEN c.received_at IS NULL THEN now() + make_interval(secs => least($2 * power(2, least(c.sends, 20)), $3)) ELSE 'infinity' END
			FROM devices d, device_status s
			WHERE c.id = ANY($1) AND d.id = c.device_id AND s.device_id = c.device_id AND `+commandReady+`
			RETURNING c.id, c.device_id, c.seq, c.type, c.body, c.issued_at, c.not_after, c.generation, c.sends, s.command_key,
				(SELECT min(o.seq) - 1 FROM commands o WHERE o.device_id = c.device_id AND o.status = 'open') AS closed_through`,
			pq.Array(due), commandBackoff.Seconds(), commandBackoffMax.Seconds()); err != nil {
			return translate(err, "claim commands")
		}
		if _, err := tx.ExecContext(ctx, `UPDATE commands SET next_send_at = now() + make_interval(secs => $2) WHERE id = ANY($1) AND next_send_at <= now()`,
			pq.Array(due), commandBackoffMax.Seconds()); err != nil {
			return translate(err, "put commands off")
		}
		var err error
		out, err = commandsWithBundles(ctx, tx, rows)
		return err
	})
	return out, err
}

type commandRow struct {
	ID            string    `db:"id"`
	DeviceID      string    `db:"device_id"`
	Seq           int64     `db:"seq"`
	Type          string    `db:"type"`
	Body          []byte    `db:"body"`
	IssuedAt      time.Time `db:"issued_at"`
	NotAfter      time.Time `db:"not_after"`
	Generation    int64     `db:"generation"`
	Sends         int       `db:"sends"`
	ClosedThrough int64     `db:"closed_through"`
	CommandKey    string    `db:"command_key"`
}

func commandsWithBundles(ctx context.Context, tx *sqlx.Tx, rows []commandRow) ([]fleet.Command, error) {
	out := make([]fleet.Command, 0, len(rows))
	bundles := map[string]*fleet.Bundle{}
	for _, r := range rows {
		c := fleet.Command{
			ID: r.ID, DeviceID: r.DeviceID, Seq: r.Seq, ClosedThrough: r.ClosedThrough, Type: r.Type, Body: r.Body,
			IssuedAt: r.IssuedAt, NotAfter: r.NotAfter, Generation: r.Generation, Sends: r.Sends, CommandKey: r.CommandKey,
		}
		if r.Type == "deploy" || r.Type == "rollback" {
			var body fleet.DeployBody
			if err := json.Unmarshal(r.Body, &body); err != nil {
				return nil, fmt.Errorf("decode command %s: %w", r.ID, err)
			}
			b, ok := bundles[body.BundleID]
			if !ok {
				var err error
				if b, err = commandBundle(ctx, tx, body.BundleID); err != nil {
					return nil, err
				}
				bundles[body.BundleID] = b
			}
			c.Bundle = b
		}
		out = append(out, c)
	}
	return out, nil
}

func commandBundle(ctx context.Context, tx *sqlx.Tx, id string) (*fleet.Bundle, error) {
	var b fleet.Bundle
	err := tx.QueryRowxContext(ctx, `SELECT id, name, version, release, checksum_sha256, size, expanded, object_key, part_size, parts, signature,
		CASE WHEN jsonb_typeof(manifest->'files') = 'array' THEN jsonb_array_length(manifest->'files') ELSE 0 END FROM bundles WHERE id = $1`, id).
		Scan(&b.ID, &b.Name, &b.Version, &b.Release, &b.Checksum, &b.Size, &b.Expanded, &b.ObjectKey, &b.PartSize, pq.Array(&b.Parts), &b.Signature, &b.Files)
	if err != nil {
		return nil, translate(err, "read bundle of a command")
	}
	return &b, nil
}

// NextSend returns how long from now the next open command is due; ok is false
// when none waits for a time.
func (d *DB) NextSend(ctx context.Context) (wait time.Duration, ok bool, err error) {
	var s *float64
	err = d.db.GetContext(ctx, &s, `SELECT extract(epoch FROM min(next_send_at) - now())::float8 FROM commands WHERE status = 'open' AND next_send_at < 'infinity'`)
	if err != nil {
		return 0, false, translate(err, "read the next delivery")
	}
	if s == nil {
		return 0, false, nil
	}
	return max(0, time.Duration(*s*float64(time.Second))), true, nil
}

// CommandsDue makes a device's open commands due now, because it asks for
// them; id narrows it to one command.
func (d *DB) CommandsDue(ctx context.Context, deviceID, id string) error {
	return d.tx(ctx, func(tx *sqlx.Tx) error { return commandsDue(ctx, tx, deviceID, id, true) })
}

// commandsDue makes open commands due; received says whether those too that
// the device has confirmed or seen.
func commandsDue(ctx context.Context, tx *sqlx.Tx, deviceID, id string, received bool) error {
	res, err := tx.ExecContext(ctx, `UPDATE commands c SET next_send_at = now() FROM device_status s
		WHERE c.device_id = $1 AND s.device_id = $1 AND c.status = 'open' AND ($2 = '' OR c.id = $2)
		AND ($3 OR c.received_at IS NULL AND c.seq > s.highest_seq)`, deviceID, id, received)
	if err != nil {
		return translate(err, "make commands due")
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err
	}
	return notify(ctx, tx, WorkDispatch)
}
