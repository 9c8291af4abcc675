package postgres

import (
	"context"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// bundleSigner verifies the signature that an uploaded bundle brings, if there
// is any key to do it with.
func bundleSigner(ctx context.Context, tx *sqlx.Tx, b fleet.Bundle) (signature, signer string, err error) {
	keys, _, err := releaseKeys(ctx, tx)
	if err != nil || keys.Mode == fleet.TrustOpen {
		return "", "", err
	}
	line, err := bundle.VerifySignature(b.Manifest, []byte(b.Signature), keys.Active())
	if err != nil {
		return "", "", err
	}
	key, err := bundle.ParseReleaseKey(line)
	return b.Signature, key.ID(), err
}

// bundleSigned gives a bundle that is there already the signature that came
// with its release this time.
func bundleSigned(ctx context.Context, tx *sqlx.Tx, b *fleet.Bundle, signature, signer string, by fleet.Actor) error {
	if signer == "" || signer == b.SignedBy {
		return nil
	}
	if _, err := tx.ExecContext(ctx, `UPDATE bundles SET signature = $2, signed_by = $3 WHERE id = $1`, b.ID, signature, signer); err != nil {
		return translate(err, "store signature")
	}
	before := b.SignedBy
	b.SignedBy = signer
	return audit(ctx, tx, by, "bundle.sign", b.ID, map[string]any{"signed_by": before}, map[string]any{"signed_by": signer})
}

// bundlesTrusted refuses to deploy what devices would not install: a bundle
// without the signature of a key that counts, once there is any key.
func bundlesTrusted(ctx context.Context, tx *sqlx.Tx, ids ...string) error {
	var rows []struct {
		Name     string `db:"name"`
		Version  string `db:"version"`
		SignedBy string `db:"signed_by"`
	}
	if err := tx.SelectContext(ctx, &rows, `SELECT b.name, b.version, b.signed_by FROM bundles b WHERE b.id = ANY($1) AND EXISTS (SELECT 1 FROM release_keys)
		AND NOT EXISTS (SELECT 1 FROM release_keys k WHERE k.id = b.signed_by AND k.revoked_at IS NULL) ORDER BY b.name, b.version LIMIT 1`, pq.Array(ids)); err != nil {
		return translate(err, "check signatures")
	}
	if len(rows) == 0 {
		return nil
	}
	why := "it is not signed"
	if rows[0].SignedBy != "" {
		why = "it is signed by the key " + rows[0].SignedBy + ", which was revoked"
	}
	return fleet.Errorf(fleet.CodeBadSignature, "%s %s may not be deployed: trust mode is required and %s; sign the same release and push it again", rows[0].Name, rows[0].Version, why)
}
