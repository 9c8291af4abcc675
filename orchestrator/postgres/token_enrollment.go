package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// EnrollmentTokenPrefix begins every claim token.
const EnrollmentTokenPrefix = "ke_"

type claimRow struct {
	ID          string         `db:"id"`
	Description string         `db:"description"`
	Labels      []byte         `db:"labels"`
	Serials     pq.StringArray `db:"serials"`
	MaxUses     int            `db:"max_uses"`
	Uses        int            `db:"uses"`
	AutoApprove bool           `db:"auto_approve"`
	CreatedAt   time.Time      `db:"created_at"`
	CreatedBy   string         `db:"created_by"`
	ExpiresAt   *time.Time     `db:"expires_at"`
	RevokedAt   *time.Time     `db:"revoked_at"`
}

const claimColumns = `id, description, labels, serials, max_uses, uses, auto_approve, created_at, created_by, expires_at, revoked_at`

func (r claimRow) token() (fleet.EnrollmentToken, error) {
	t := fleet.EnrollmentToken{
		ID: r.ID, Description: r.Description, Labels: fleet.Labels{}, Serials: r.Serials, MaxUses: r.MaxUses, Uses: r.Uses, AutoApprove: r.AutoApprove,
		CreatedAt: r.CreatedAt.UTC(), CreatedBy: r.CreatedBy, ExpiresAt: utcTime(r.ExpiresAt), RevokedAt: utcTime(r.RevokedAt),
	}
	if err := json.Unmarshal(r.Labels, &t.Labels); err != nil {
		return t, fmt.Errorf("decode labels of enrollment token %s: %w", r.ID, err)
	}
	return t, nil
}

// CreateEnrollmentToken makes a claim token and returns its secret, which is
// not stored: the stored answer of a repeat does not have it either.
func (d *DB) CreateEnrollmentToken(ctx context.Context, n fleet.NewEnrollmentToken, by fleet.Actor) (fleet.EnrollmentToken, string, error) {
	var t fleet.EnrollmentToken
	var secret string
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		if err := expiryAhead(ctx, tx, n.ExpiresAt); err != nil {
			return err
		}
		var hash []byte
		secret, hash = tokenSecret(EnrollmentTokenPrefix)
		serials := n.Serials
		if serials == nil {
			serials = []string{}
		}
		var row claimRow
		err := tx.GetContext(ctx, &row, `INSERT INTO enrollment_tokens (id, token_hash, description, labels, serials, max_uses, auto_approve, created_by, expires_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING `+claimColumns,
			fleet.NewID("enr"), hash, n.Description, labelsJSON(n.Labels), pq.Array(serials), n.MaxUses, n.AutoApprove, by.Name, n.ExpiresAt)
		if err != nil {
			return translate(err, "store enrollment token")
		}
		if t, err = row.token(); err != nil {
			return err
		}
		if err := audit(ctx, tx, by, "enrollment_token.create", t.ID, nil, t); err != nil {
			return err
		}
		return onceDone(ctx, tx, http.StatusCreated, struct {
			fleet.EnrollmentToken
			Token string `json:"token"`
		}{EnrollmentToken: t})
	})
	return t, secret, err
}

// EnrollmentTokens lists claim tokens, newest first. A scope shows those whose
// labels lie within it.
func (d *DB) EnrollmentTokens(ctx context.Context, scope fleet.Selector, p fleet.Page) (fleet.List[fleet.EnrollmentToken], error) {
	var list fleet.List[fleet.EnrollmentToken]
	w := &where{}
	w.selector("labels", scope)
	var total int
	if err := d.db.GetContext(ctx, &total, `SELECT count(*) FROM enrollment_tokens`+w.sql(), w.args...); err != nil {
		return list, translate(err, "count enrollment tokens")
	}
	if err := w.cursorTime("", p.Cursor); err != nil {
		return list, err
	}
	var rows []claimRow
	q := `SELECT ` + claimColumns + ` FROM enrollment_tokens` + w.sql() + ` ORDER BY created_at DESC, id DESC LIMIT ` + w.arg(p.Limit+1)
	if err := d.db.SelectContext(ctx, &rows, q, w.args...); err != nil {
		return list, translate(err, "list enrollment tokens")
	}
	tokens, err := mapRows(rows, claimRow.token)
	if err != nil {
		return list, err
	}
	return cut(tokens, p.Limit, total, func(t fleet.EnrollmentToken) string { return cursorAt(t.CreatedAt, t.ID) }), nil
}

// RevokeEnrollmentToken ends a claim token; devices that used it stay.
func (d *DB) RevokeEnrollmentToken(ctx context.Context, id string, scope fleet.Selector, by fleet.Actor) error {
	return d.tx(ctx, func(tx *sqlx.Tx) error {
		w := &where{}
		w.and("id = %s", id)
		w.selector("labels", scope)
		var row claimRow
		if err := tx.GetContext(ctx, &row, `SELECT `+claimColumns+` FROM enrollment_tokens`+w.sql()+` FOR UPDATE`, w.args...); err != nil {
			return tokenMissing(translate(err, "read enrollment token"), "enrollment token", id)
		}
		if row.RevokedAt != nil {
			return nil
		}
		before, err := row.token()
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE enrollment_tokens SET revoked_at = now() WHERE id = $1`, id); err != nil {
			return translate(err, "revoke enrollment token")
		}
		return audit(ctx, tx, by, "enrollment_token.revoke", id, before, nil)
	})
}
