package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/jmoiron/sqlx"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// cloneSign reports whether a full report cannot come from the device whose
// birth is stored: a session is one connection of one boot, and its number
// never goes back. A report of an older session and the same boot may have been
// on its way when the newer one began; a minute later it is none of those.
func (was stateBefore) cloneSign(s protocol.State) bool {
	switch {
	case was.Boot == "": // the stored session's own birth has not come yet
		return false
	case s.Session == was.Session:
		return orDash(s.Boot) != was.Boot
	case s.Session < was.Session:
		return orDash(s.Boot) != was.Boot || was.SessionOld
	}
	return false
}

// cloneSeen notes a sign of a copy. The second one within a day quarantines the
// device, which it reports: two hosts with one identity must not both be sent
// commands, and only an operator can tell which is the right one. Further
// reports of the same birth are no further signs.
func cloneSeen(ctx context.Context, tx *sqlx.Tx, id string, s protocol.State, was stateBefore) (quarantined bool, err error) {
	var again bool
	err = tx.GetContext(ctx, &again, `UPDATE device_status s SET clone_sign = $2, clone_sign_at = now() FROM device_status was
		WHERE s.device_id = $1 AND was.device_id = $1 AND was.clone_sign <> $2 RETURNING COALESCE(was.clone_sign_at > now() - interval '24 hours', false)`,
		id, fmt.Sprintf("%d/%s", s.Session, s.Boot))
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	if err != nil || !again {
		return false, translate(err, "note a sign of a copy")
	}
	if _, err := tx.ExecContext(ctx, `SET LOCAL synchronous_commit = on`); err != nil {
		return false, translate(err, "wait for the commit")
	}
	res, err := tx.ExecContext(ctx, `UPDATE devices SET status = $2, auth_epoch = auth_epoch + 1, updated_at = now() WHERE id = $1 AND status = $3`,
		id, fleet.CredentialQuarantined, fleet.CredentialActive)
	if err != nil {
		return false, translate(err, "quarantine device")
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return false, err // an operator was faster
	}
	why := map[string]any{"status": fleet.CredentialQuarantined, "reason": "clone", "session": s.Session, "stored_session": was.Session}
	if err := audit(ctx, tx, fleet.System, "device.quarantine", id, map[string]any{"status": fleet.CredentialActive}, why); err != nil {
		return false, err
	}
	if err := event(ctx, tx, fleet.EventDeviceCredential, id, id, why); err != nil {
		return false, err
	}
	return true, notify(ctx, tx, WorkKick+id)
}

// cloneForget lets a device begin anew after its release: whichever host comes
// next is the device, also one that was restored and counts from an older
// session.
func cloneForget(ctx context.Context, tx *sqlx.Tx, id string) error {
	_, err := tx.ExecContext(ctx, `UPDATE device_status SET session = 0, seq = 0, boot = '', session_at = NULL, clone_sign = '', clone_sign_at = NULL WHERE device_id = $1`, id)
	return translate(err, "forget the sessions")
}
