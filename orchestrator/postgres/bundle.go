package postgres

import (
	"context"
	"net/http"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// bundleRow is one bundle with everything.
type bundleRow struct {
	ID        string         `db:"id"`
	Name      string         `db:"name"`
	Version   string         `db:"version"`
	Release   string         `db:"release"`
	Checksum  string         `db:"checksum_sha256"`
	Size      int64          `db:"size"`
	Expanded  int64          `db:"expanded"`
	ObjectKey string         `db:"object_key"`
	Manifest  []byte         `db:"manifest"`
	PartSize  int64          `db:"part_size"`
	Parts     pq.StringArray `db:"parts"`
	SignedBy  string         `db:"signed_by"`
	CreatedAt time.Time      `db:"created_at"`
	CreatedBy string         `db:"created_by"`
}

const bundleSelect = `SELECT b.id, b.name, b.version, b.release, b.checksum_sha256, b.size, b.expanded, b.object_key, b.manifest,
	b.part_size, b.parts, b.signed_by, b.created_at, b.created_by FROM bundles b`

func (r bundleRow) bundle() fleet.Bundle {
	return fleet.Bundle{
		ID: r.ID, Name: r.Name, Version: r.Version, Release: r.Release, Checksum: r.Checksum, Size: r.Size, Expanded: r.Expanded,
		ObjectKey: r.ObjectKey, Manifest: r.Manifest, PartSize: r.PartSize, Parts: r.Parts, SignedBy: r.SignedBy,
		CreatedAt: r.CreatedAt.UTC(), CreatedBy: r.CreatedBy,
	}
}

// CreateBundle stores an uploaded bundle. The same release again returns the
// one that is there, created false, with the signature that it brings; the
// version with another release is a conflict. Where a signature is required, a
// bundle without one by a release key is fleet.CodeBadSignature.
func (d *DB) CreateBundle(ctx context.Context, b fleet.Bundle, by fleet.Actor) (stored fleet.Bundle, created bool, err error) {
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		signature, signer, err := bundleSigner(ctx, tx, b)
		if err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, `INSERT INTO bundles (id, name, version, release, checksum_sha256, size, expanded, object_key, manifest, part_size, parts, signature, signed_by, created_by)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT DO NOTHING`,
			b.ID, b.Name, b.Version, b.Release, b.Checksum, b.Size, b.Expanded, b.ObjectKey, string(b.Manifest), b.PartSize, pq.Array(b.Parts), signature, signer, by.Name)
		if err != nil {
			return translate(err, "store bundle")
		}
		n, err := res.RowsAffected()
		if err != nil {
			return translate(err, "store bundle")
		}
		created = n == 1
		var rows []bundleRow
		if err := tx.SelectContext(ctx, &rows, bundleSelect+` WHERE b.release = $1 OR (b.name = $2 AND b.version = $3) ORDER BY b.release = $1 DESC LIMIT 1`,
			b.Release, b.Name, b.Version); err != nil {
			return translate(err, "read bundle")
		}
		if len(rows) == 0 { // deleted since; the client's repeat stores it
			return fleet.Errorf(fleet.CodeConflict, "bundle %s %s was deleted meanwhile: upload it again", b.Name, b.Version)
		}
		stored = rows[0].bundle()
		if stored.Release != b.Release {
			return fleet.Errorf(fleet.CodeConflict, "%s %s exists with other content (release %.12s, this one is %.12s): a version never changes, give it a new one",
				b.Name, b.Version, stored.Release, b.Release)
		}
		if !created {
			if err := bundleSigned(ctx, tx, &stored, signature, signer, by); err != nil {
				return err
			}
			return onceDone(ctx, tx, http.StatusOK, stored)
		}
		if err := audit(ctx, tx, by, "bundle.upload", stored.ID, nil, bundleSummary(stored)); err != nil {
			return err
		}
		if err := event(ctx, tx, fleet.EventBundleUploaded, stored.ID, "", bundleSummary(stored)); err != nil {
			return err
		}
		return onceDone(ctx, tx, http.StatusCreated, stored)
	})
	return stored, created, err
}

func bundleSummary(b fleet.Bundle) map[string]any {
	return map[string]any{"name": b.Name, "version": b.Version, "release": b.Release, "checksum_sha256": b.Checksum, "size": b.Size}
}

// Bundles lists bundles, newest first; name, when set, chooses by name.
func (d *DB) Bundles(ctx context.Context, name string, p fleet.Page) (fleet.List[fleet.Bundle], error) {
	var list fleet.List[fleet.Bundle]
	w := &where{}
	if name != "" {
		w.and("b.name = %s", name)
	}
	var total int
	if err := d.db.GetContext(ctx, &total, `SELECT count(*) FROM bundles b`+w.sql(), w.args...); err != nil {
		return list, translate(err, "count bundles")
	}
	if err := w.cursorTime("b.", p.Cursor); err != nil {
		return list, err
	}
	var rows []bundleRow
	q := bundleSelect + w.sql() + ` ORDER BY b.created_at DESC, b.id DESC LIMIT ` + w.arg(p.Limit+1)
	if err := d.db.SelectContext(ctx, &rows, q, w.args...); err != nil {
		return list, translate(err, "list bundles")
	}
	bundles := make([]fleet.Bundle, 0, len(rows))
	for _, r := range rows {
		b := r.bundle()
		b.Manifest = nil // one bundle's answer has it; a thousand would be megabytes
		bundles = append(bundles, b)
	}
	return cut(bundles, p.Limit, total, func(b fleet.Bundle) string { return cursorAt(b.CreatedAt, b.ID) }), nil
}

// Bundle returns one bundle with its manifest.
func (d *DB) Bundle(ctx context.Context, id string) (fleet.Bundle, error) {
	var rows []bundleRow
	if err := d.db.SelectContext(ctx, &rows, bundleSelect+` WHERE b.id = $1`, id); err != nil {
		return fleet.Bundle{}, translate(err, "read bundle")
	}
	if len(rows) == 0 {
		return fleet.Bundle{}, fleet.Errorf(fleet.CodeNotFound, "bundle %q does not exist", id)
	}
	return rows[0].bundle(), nil
}

// DeleteBundle removes a bundle that nothing refers to and returns it; its
// object is the caller's to remove. A bundle in use is a conflict that says by
// what.
func (d *DB) DeleteBundle(ctx context.Context, id string, by fleet.Actor) (fleet.Bundle, error) {
	var b fleet.Bundle
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		var rows []bundleRow
		if err := tx.SelectContext(ctx, &rows, bundleSelect+` WHERE b.id = $1 FOR UPDATE`, id); err != nil {
			return translate(err, "read bundle")
		}
		if len(rows) == 0 {
			return fleet.Errorf(fleet.CodeNotFound, "bundle %q does not exist", id)
		}
		b = rows[0].bundle()
		var uses []string
		if err := tx.SelectContext(ctx, &uses, `(SELECT 'device ' || device_id || ' runs it' FROM device_status WHERE release = $2 LIMIT 1)
			UNION ALL (SELECT 'deployment ' || deployment_id || ' has it' FROM deployment_targets WHERE bundle_id = $1 LIMIT 1)
			UNION ALL (SELECT 'deployment ' || id || ' has it' FROM deployments WHERE bundle_id = $1 LIMIT 1)
			UNION ALL (SELECT 'it stands in the history of device ' || device_id FROM device_bundle_history WHERE bundle_id = $1 LIMIT 1)`, id, b.Release); err != nil {
			return translate(err, "look for uses of bundle")
		}
		if len(uses) > 0 {
			return fleet.Errorf(fleet.CodeConflict, "bundle %s %s is in use: %s", b.Name, b.Version, uses[0])
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM bundles WHERE id = $1`, id); err != nil {
			return translate(err, "delete bundle")
		}
		return audit(ctx, tx, by, "bundle.delete", id, bundleSummary(b), nil)
	})
	return b, err
}

// BundleKeys returns the object key of every bundle: what a sweep of the store
// must leave alone.
func (d *DB) BundleKeys(ctx context.Context) ([]string, error) {
	var keys []string
	err := d.db.SelectContext(ctx, &keys, `SELECT object_key FROM bundles`)
	return keys, translate(err, "read object keys")
}
