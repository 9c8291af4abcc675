package postgres

import (
	"context"
	"net/http"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

type releaseKeyRow struct {
	ID          string     `db:"id"`
	PublicKey   string     `db:"public_key"`
	File        string     `db:"file"`
	Signature   string     `db:"signature"`
	SignedBy    string     `db:"signed_by"`
	Description string     `db:"description"`
	CreatedAt   time.Time  `db:"created_at"`
	CreatedBy   string     `db:"created_by"`
	RevokedAt   *time.Time `db:"revoked_at"`
	RevokedBy   string     `db:"revoked_by"`
}

// releaseKeys reads every key in the order in which they were added.
func releaseKeys(ctx context.Context, q sqlx.QueryerContext) (fleet.ReleaseKeys, []releaseKeyRow, error) {
	all := fleet.ReleaseKeys{Mode: fleet.TrustOpen, Items: []fleet.ReleaseKey{}}
	var rows []releaseKeyRow
	if err := sqlx.SelectContext(ctx, q, &rows, `SELECT id, public_key, file, signature, signed_by, description, created_at, created_by, revoked_at, revoked_by
		FROM release_keys ORDER BY number`); err != nil {
		return all, nil, translate(err, "read release keys")
	}
	for _, r := range rows {
		all.Mode = fleet.TrustRequired
		all.Items = append(all.Items, fleet.ReleaseKey{
			ID: r.ID, PublicKey: r.PublicKey, Description: r.Description, SignedBy: r.SignedBy,
			CreatedAt: r.CreatedAt.UTC(), CreatedBy: r.CreatedBy, RevokedAt: utcTime(r.RevokedAt), RevokedBy: r.RevokedBy,
		})
	}
	return all, rows, nil
}

// ReleaseKeys returns the fleet's trust mode and every release key, the revoked
// ones too.
func (d *DB) ReleaseKeys(ctx context.Context) (fleet.ReleaseKeys, error) {
	all, _, err := releaseKeys(ctx, d.db)
	return all, err
}

// AddReleaseKey adds a key that may sign bundles. The first one makes the trust
// mode required; each further one must be signed by one that counts, else
// fleet.CodeBadSignature. A key that is there already is returned, created
// false; one that was revoked is a conflict. Every device is told by a command
// of the same transaction.
func (d *DB) AddReleaseKey(ctx context.Context, n fleet.NewReleaseKey, by fleet.Actor) (added fleet.ReleaseKey, created bool, err error) {
	key, err := bundle.ParseReleaseKey(n.File)
	if err != nil {
		return added, false, err
	}
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		created = false
		all, err := releaseKeysLocked(ctx, tx)
		if err != nil {
			return err
		}
		for _, k := range all.Items {
			switch {
			case k.ID != key.ID():
			case k.PublicKey != key.String():
				return fleet.Errorf(fleet.CodeConflict, "another release key has the id %s: make a new one", k.ID)
			case k.RevokedAt != nil:
				return fleet.Errorf(fleet.CodeConflict, "release key %s was revoked and cannot come back: make a new one", k.ID)
			default:
				added = k
				return onceDone(ctx, tx, http.StatusOK, added)
			}
		}
		var signer string
		if all.Mode == fleet.TrustRequired {
			by, err := bundle.VerifyNewKey(n.File, n.Signature, all.Active())
			if err != nil {
				return err
			}
			signer = by.ID()
		} else {
			n.Signature = "" // nobody could check it
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO release_keys (id, public_key, file, signature, signed_by, description, created_by) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			key.ID(), key.String(), n.File, n.Signature, signer, n.Description, by.Name); err != nil {
			return translate(err, "store release key")
		}
		if added, err = releaseKeyChanged(ctx, tx, key.ID()); err != nil {
			return err
		}
		if err := audit(ctx, tx, by, "release_key.add", added.ID, map[string]any{"trust_mode": all.Mode},
			map[string]any{"trust_mode": fleet.TrustRequired, "public_key": added.PublicKey, "signed_by": signer}); err != nil {
			return err
		}
		created = true
		return onceDone(ctx, tx, http.StatusCreated, added)
	})
	return added, created, err
}

// RevokeReleaseKey ends a key: what it has signed is not deployed any more
// unless another key signs it too. The last one stays, or no device could ever
// install anything again.
func (d *DB) RevokeReleaseKey(ctx context.Context, id string, by fleet.Actor) error {
	return d.tx(ctx, func(tx *sqlx.Tx) error {
		all, err := releaseKeysLocked(ctx, tx)
		if err != nil {
			return err
		}
		var key *fleet.ReleaseKey
		for i := range all.Items {
			if all.Items[i].ID == id {
				key = &all.Items[i]
			}
		}
		switch {
		case key == nil:
			return fleet.Errorf(fleet.CodeNotFound, "release key %q does not exist", id)
		case key.RevokedAt != nil:
			return nil
		case len(all.Active()) == 1:
			return fleet.Errorf(fleet.CodeConflict, "release key %s is the last one: add another first, signed by it", id)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE release_keys SET revoked_at = now(), revoked_by = $2 WHERE id = $1`, id, by.Name); err != nil {
			return translate(err, "revoke release key")
		}
		if _, err := releaseKeyChanged(ctx, tx, id); err != nil {
			return err
		}
		return audit(ctx, tx, by, "release_key.revoke", id, map[string]any{"public_key": key.PublicKey}, nil)
	})
}

// releaseKeysLocked reads the keys so that nobody else changes them meanwhile.
func releaseKeysLocked(ctx context.Context, tx *sqlx.Tx) (fleet.ReleaseKeys, error) {
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtext('kernex-release-keys'))`); err != nil {
		return fleet.ReleaseKeys{}, translate(err, "lock release keys")
	}
	all, _, err := releaseKeys(ctx, tx)
	return all, err
}

// releaseKeyChanged tells everyone, and returns the key as it is now.
func releaseKeyChanged(ctx context.Context, tx *sqlx.Tx, id string) (fleet.ReleaseKey, error) {
	all, _, err := releaseKeys(ctx, tx)
	if err != nil {
		return fleet.ReleaseKey{}, err
	}
	if err := trustCommands(ctx, tx, ""); err != nil {
		return fleet.ReleaseKey{}, err
	}
	if err := event(ctx, tx, fleet.EventTrustChanged, id, "", map[string]any{"trust_mode": all.Mode, "release_keys": len(all.Active())}); err != nil {
		return fleet.ReleaseKey{}, err
	}
	for _, k := range all.Items {
		if k.ID == id {
			return k, nil
		}
	}
	return fleet.ReleaseKey{}, fleet.Errorf(fleet.CodeInternal, "release key %s is gone", id)
}
