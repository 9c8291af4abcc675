package postgres

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// TokenPrefix begins every API token, so that one is known when it leaks.
const TokenPrefix = "kx_"

const tokenSelect = `SELECT id, name, role, selector, created_at, created_by, expires_at, last_used_at, revoked_at FROM api_tokens`

// tokenSecret makes 256 random bits with the prefix of its kind, and what is
// stored of it: its SHA-256.
func tokenSecret(prefix string) (secret string, hash []byte) {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: it aborts the program instead
	secret = prefix + base64.RawURLEncoding.EncodeToString(b)
	sum := sha256.Sum256([]byte(secret))
	return secret, sum[:]
}

func tokenUTC(t fleet.APIToken) fleet.APIToken {
	t.CreatedAt = t.CreatedAt.UTC()
	t.ExpiresAt, t.LastUsedAt, t.RevokedAt = utcTime(t.ExpiresAt), utcTime(t.LastUsedAt), utcTime(t.RevokedAt)
	return t
}

// Token returns the valid API token that secret is; anything else is
// fleet.CodeUnauthorized. Its use is noted at most once a minute.
func (d *DB) Token(ctx context.Context, secret string) (fleet.APIToken, error) {
	var t fleet.APIToken
	if !strings.HasPrefix(secret, TokenPrefix) || len(secret) > 128 {
		return t, fleet.Errorf(fleet.CodeUnauthorized, "the token is not valid")
	}
	hash := sha256.Sum256([]byte(secret))
	var rows []struct {
		fleet.APIToken
		Note bool `db:"note"`
	}
	if err := d.db.SelectContext(ctx, &rows, `SELECT id, name, role, selector, created_at, created_by, expires_at, last_used_at, revoked_at,
		COALESCE(last_used_at < now() - interval '1 minute', true) AS note
		FROM api_tokens WHERE token_hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())`, hash[:]); err != nil {
		return t, translate(err, "read token")
	}
	if len(rows) == 0 {
		return t, fleet.Errorf(fleet.CodeUnauthorized, "the token is not valid")
	}
	t = tokenUTC(rows[0].APIToken)
	if rows[0].Note {
		if _, err := d.db.ExecContext(ctx, `UPDATE api_tokens SET last_used_at = now() WHERE id = $1 AND COALESCE(last_used_at < now() - interval '1 minute', true)`, t.ID); err != nil {
			return t, translate(err, "note the use of a token")
		}
	}
	return t, nil
}

// Tokens lists API tokens, newest first.
func (d *DB) Tokens(ctx context.Context, p fleet.Page) (fleet.List[fleet.APIToken], error) {
	var list fleet.List[fleet.APIToken]
	w := &where{}
	var total int
	if err := d.db.GetContext(ctx, &total, `SELECT count(*) FROM api_tokens`); err != nil {
		return list, translate(err, "count tokens")
	}
	if err := w.cursorTime("", p.Cursor); err != nil {
		return list, err
	}
	var rows []fleet.APIToken
	q := tokenSelect + w.sql() + ` ORDER BY created_at DESC, id DESC LIMIT ` + w.arg(p.Limit+1)
	if err := d.db.SelectContext(ctx, &rows, q, w.args...); err != nil {
		return list, translate(err, "list tokens")
	}
	for i := range rows {
		rows[i] = tokenUTC(rows[i])
	}
	return cut(rows, p.Limit, total, func(t fleet.APIToken) string { return cursorAt(t.CreatedAt, t.ID) }), nil
}

// CreateToken makes an API token and returns its secret, which is not stored:
// the stored answer of a repeat does not have it either.
func (d *DB) CreateToken(ctx context.Context, n fleet.NewToken, by fleet.Actor) (fleet.APIToken, string, error) {
	var t fleet.APIToken
	var secret string
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		var err error
		if t, secret, err = tokenInsert(ctx, tx, n, by); err != nil {
			return err
		}
		return onceDone(ctx, tx, http.StatusCreated, struct {
			fleet.APIToken
			Token string `json:"token"`
		}{APIToken: t})
	})
	return t, secret, err
}

func tokenInsert(ctx context.Context, tx *sqlx.Tx, n fleet.NewToken, by fleet.Actor) (fleet.APIToken, string, error) {
	var t fleet.APIToken
	if err := expiryAhead(ctx, tx, n.ExpiresAt); err != nil {
		return t, "", err
	}
	secret, hash := tokenSecret(TokenPrefix)
	err := tx.GetContext(ctx, &t, `INSERT INTO api_tokens (id, name, token_hash, role, selector, created_by, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
		RETURNING id, name, role, selector, created_at, created_by, expires_at, last_used_at, revoked_at`,
		fleet.NewID("tok"), n.Name, hash, n.Role, n.Selector.String(), by.Name, n.ExpiresAt)
	if err != nil {
		return t, "", translate(err, "store token")
	}
	t = tokenUTC(t)
	return t, secret, audit(ctx, tx, by, "token.create", t.ID, nil, map[string]any{"name": t.Name, "role": t.Role, "selector": t.Selector, "expires_at": t.ExpiresAt})
}

// expiryAhead refuses an expiry that has passed by the database's clock.
func expiryAhead(ctx context.Context, tx *sqlx.Tx, at *time.Time) error {
	if at == nil {
		return nil
	}
	var ahead bool
	if err := tx.GetContext(ctx, &ahead, `SELECT $1::timestamptz > now()`, *at); err != nil {
		return translate(err, "compare expiry")
	}
	if !ahead {
		return fleet.Errorf(fleet.CodeInvalid, "expires_at %s has passed", at.UTC().Format(time.RFC3339))
	}
	return nil
}

// RevokeToken ends an API token. The last admin token without a scope stays, or
// nobody could make another one.
func (d *DB) RevokeToken(ctx context.Context, id string, by fleet.Actor) error {
	return d.tx(ctx, func(tx *sqlx.Tx) error {
		// One lock for all revocations: two admins must not end each other's.
		if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtext('kernex-admin-token'))`); err != nil {
			return translate(err, "lock tokens")
		}
		var t fleet.APIToken
		if err := tx.GetContext(ctx, &t, tokenSelect+` WHERE id = $1`, id); err != nil {
			return tokenMissing(translate(err, "read token"), "token", id)
		}
		if t.RevokedAt != nil {
			return nil
		}
		if t.Role == fleet.RoleAdmin && t.Selector == "" {
			var others int
			if err := tx.GetContext(ctx, &others, `SELECT count(*) FROM api_tokens WHERE role = 'admin' AND selector = '' AND revoked_at IS NULL
				AND expires_at IS NULL AND id <> $1`, id); err != nil {
				return translate(err, "count admin tokens")
			}
			if others == 0 {
				return fleet.Errorf(fleet.CodeConflict, "token %s is the last admin token that does not expire: make another one first", id)
			}
		}
		if _, err := tx.ExecContext(ctx, `UPDATE api_tokens SET revoked_at = now() WHERE id = $1`, id); err != nil {
			return translate(err, "revoke token")
		}
		if t.Role == fleet.RoleMonitor || t.Role == fleet.RoleService {
			if err := notify(ctx, tx, WorkKick+id); err != nil {
				return err
			}
		}
		return audit(ctx, tx, by, "token.revoke", id, map[string]any{"name": t.Name, "role": t.Role}, nil)
	})
}

func tokenMissing(err error, what, id string) error {
	if fleet.ErrorCode(err) == fleet.CodeNotFound {
		return fleet.Errorf(fleet.CodeNotFound, "%s %q does not exist", what, id)
	}
	return err
}

// EnsureAdminToken makes the first admin token if there is none that is valid
// and without a scope. keep stores the secret before it counts: its error, or a
// crash after it, leaves no token that nobody knows.
func (d *DB) EnsureAdminToken(ctx context.Context, keep func(secret string) error) (created bool, err error) {
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		created = false
		if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtext('kernex-admin-token'))`); err != nil {
			return translate(err, "lock tokens")
		}
		var n int
		if err := tx.GetContext(ctx, &n, `SELECT count(*) FROM api_tokens WHERE role = 'admin' AND selector = '' AND revoked_at IS NULL
			AND (expires_at IS NULL OR expires_at > now())`); err != nil {
			return translate(err, "count admin tokens")
		}
		if n > 0 {
			return nil
		}
		_, secret, err := tokenInsert(ctx, tx, fleet.NewToken{Name: "first admin", Role: fleet.RoleAdmin}, fleet.System)
		if err != nil {
			return err
		}
		created = true
		return keep(secret)
	})
	return created && err == nil, err
}
