package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"sort"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// A target that a device has accepted gets timeout_s and this slack for each
// step (a report moves its deadline), and in all not more than
// targetBoundSteps steps and targetBoundSlack.
const (
	targetStepSlack  = 60   // seconds
	targetBoundSteps = 4    // downloading, installing, verifying, returning
	targetBoundSlack = 3600 // seconds
)

type targetRow struct {
	DeploymentID string            `db:"deployment_id"`
	BundleID     string            `db:"bundle_id"`
	State        fleet.TargetState `db:"state"`
	AcceptedAt   *time.Time        `db:"accepted_at"`
}

type resultCommand struct {
	DeviceID    string           `db:"device_id"`
	Credential  fleet.Credential `db:"credential"`
	Type        string           `db:"type"`
	Status      string           `db:"status"`
	ResultState string           `db:"result_state"`
	Body        []byte           `db:"body"`
}

// resultBatch gathers what is written once for all results of a transaction.
type resultBatch struct {
	tx          *sqlx.Tx
	deployments map[string]bool
	events      reportEvents
}

// ApplyResults stores results that devices reported, each device's in order, in one
// transaction; results[i] came from devices[i]. acks[i] answers a terminal
// result and is nil for progress and for a device that may not report. The acks
// may be sent when ApplyResults has returned: it waits for the disk.
func (d *DB) ApplyResults(ctx context.Context, devices []string, results []protocol.Result) (acks []*protocol.ResultAck, err error) {
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		b := &resultBatch{tx: tx, deployments: map[string]bool{}}
		acks = make([]*protocol.ResultAck, len(results))
		order, err := resultsLock(ctx, tx, devices)
		if err != nil {
			return err
		}
		for _, i := range order {
			r := results[i]
			code, stored, err := b.apply(ctx, devices[i], r)
			if err != nil {
				return fmt.Errorf("apply result of command %q: %w", r.Command, err)
			}
			if stored && r.State.Final() {
				acks[i] = &protocol.ResultAck{Command: r.Command, State: r.State, Accepted: code == "", Code: code}
			}
		}
		return b.end(ctx)
	})
	return acks, err
}

// resultsLock locks the status rows of devices, by device, and returns the order
// in which to store their results: by device too, those of one device as they
// came. Whoever writes the commands of several devices goes this way, or heartbeats
// of devices that come back and their results would wait for each other.
func resultsLock(ctx context.Context, tx *sqlx.Tx, devices []string) (order []int, err error) {
	if _, err := tx.ExecContext(ctx, `SELECT 1 FROM device_status WHERE device_id = ANY($1) ORDER BY device_id FOR NO KEY UPDATE`, pq.Array(devices)); err != nil {
		return nil, translate(err, "lock device status")
	}
	order = make([]int, len(devices))
	for i := range order {
		order[i] = i
	}
	sort.SliceStable(order, func(x, y int) bool { return devices[order[x]] < devices[order[y]] })
	return order, nil
}

// end marks the deployments that changed. It comes last, because the engine
// holds their rows while it works, and is ordered, because others do the same.
func (b *resultBatch) end(ctx context.Context) error {
	if err := b.events.write(ctx, b.tx); err != nil {
		return err
	}
	if len(b.deployments) == 0 {
		return nil
	}
	ids := make([]string, 0, len(b.deployments))
	for id := range b.deployments {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	if _, err := b.tx.ExecContext(ctx, `UPDATE deployments SET dirty = true WHERE id IN (SELECT id FROM deployments WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE)`,
		pq.Array(ids)); err != nil {
		return translate(err, "mark deployments")
	}
	return notify(ctx, b.tx, WorkRollout)
}

// apply stores one result. code is why it was not accepted; stored is false
// when the device gets no answer at all.
func (b *resultBatch) apply(ctx context.Context, device string, r protocol.Result) (code fleet.Code, stored bool, err error) {
	// The target first, then its command: the engine locks in this order.
	t, isTarget, err := b.target(ctx, r.Command)
	if err != nil {
		return "", false, err
	}
	var c resultCommand
	err = b.tx.GetContext(ctx, &c, `SELECT c.device_id, d.status AS credential, c.type, c.status, c.result_state, c.body
		FROM commands c JOIN devices d ON d.id = c.device_id WHERE c.id = $1 FOR UPDATE OF c`, r.Command)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return b.unknown(ctx, device)
	case err != nil:
		return "", false, translate(err, "read command")
	case c.DeviceID != device:
		return fleet.CodeNoTarget, true, nil
	case c.Credential != fleet.CredentialActive:
		return "", false, nil
	}
	if isTarget {
		code, err = b.applyTarget(ctx, device, c, t, r)
	} else {
		code, err = b.applyOther(ctx, device, c, r)
	}
	return code, true, err
}

// unknown answers a result for a command that does not exist, if the device
// may report at all.
func (b *resultBatch) unknown(ctx context.Context, device string) (fleet.Code, bool, error) {
	var active bool
	err := b.tx.GetContext(ctx, &active, `SELECT EXISTS (SELECT 1 FROM devices WHERE id = $1 AND status = 'active')`, device)
	return fleet.CodeUnknownCommand, active, translate(err, "read device")
}

func (b *resultBatch) target(ctx context.Context, command string) (t targetRow, ok bool, err error) {
	err = b.tx.GetContext(ctx, &t, `SELECT deployment_id, bundle_id, state, accepted_at FROM deployment_targets WHERE command_id = $1 FOR UPDATE`, command)
	if errors.Is(err, sql.ErrNoRows) {
		return t, false, nil
	}
	return t, err == nil, translate(err, "read target")
}

func (b *resultBatch) applyTarget(ctx context.Context, device string, c resultCommand, t targetRow, r protocol.Result) (fleet.Code, error) {
	switch {
	case t.State.Final() && !r.State.Final():
		return "", nil // progress that a deadline or a newer deployment overtook
	case t.State.Final() && c.Status == "done" && c.ResultState == string(r.State):
		return "", nil // a repeat: the ack was lost
	case t.State.Final():
		return fleet.CodeLate, b.late(ctx, device, t, r)
	case !r.State.Final():
		return "", b.progress(ctx, device, t, r)
	}
	return "", b.terminal(ctx, device, t, r)
}

// progress moves the target forward, never back, and its deadline on.
func (b *resultBatch) progress(ctx context.Context, device string, t targetRow, r protocol.Result) error {
	next := t.State
	if t.State.CanBecome(r.State) {
		next = r.State
	} else if t.State != r.State {
		return nil
	}
	if _, err := b.tx.ExecContext(ctx, `UPDATE deployment_targets SET state = $2, step = $3, attempt = $4, bytes = greatest(bytes, $5),
			accepted_at = COALESCE(accepted_at, now()), updated_at = now(),
			deadline = least(now() + make_interval(secs => timeout_s + $6), COALESCE(accepted_at, now()) + make_interval(secs => $7 * timeout_s + $8))
		WHERE command_id = $1`, r.Command, next, r.Step, min(r.Attempt, math.MaxInt32), r.Bytes, targetStepSlack, targetBoundSteps, targetBoundSlack); err != nil {
		return translate(err, "move target")
	}
	if _, err := b.tx.ExecContext(ctx, `UPDATE commands SET received_at = now(), next_send_at = 'infinity' WHERE id = $1 AND status = 'open' AND received_at IS NULL`, r.Command); err != nil {
		return translate(err, "confirm command")
	}
	if next != t.State {
		b.deployments[t.DeploymentID] = true
		b.events.addAbout(fleet.EventDeploymentTarget, t.DeploymentID, device, map[string]any{"device_id": device, "state": next, "step": r.Step})
	}
	return nil
}

// terminal ends the target, its command and, on success, changes what the
// device is known to run.
func (b *resultBatch) terminal(ctx context.Context, device string, t targetRow, r protocol.Result) error {
	code, message := resultError(r)
	if _, err := b.tx.ExecContext(ctx, `UPDATE deployment_targets SET state = $2, step = $3, attempt = $4, bytes = greatest(bytes, $5), error_code = $6, error_message = $7,
			output = $8, duration_ms = $9, finished_at = now(), updated_at = now() WHERE command_id = $1`,
		r.Command, r.State, r.Step, min(r.Attempt, math.MaxInt32), r.Bytes, code, message, protocol.TrimText(r.Output, protocol.MaxOutput), r.DurationMS); err != nil {
		return translate(err, "end target")
	}
	if err := b.commandDone(ctx, r); err != nil {
		return err
	}
	if err := b.history(ctx, device, t, r, false); err != nil {
		return err
	}
	b.events.addAbout(fleet.EventDeploymentTarget, t.DeploymentID, device,
		map[string]any{"device_id": device, "state": r.State, "error_code": code, "error": message})
	return b.touch(ctx, device, t.DeploymentID)
}

// touch marks the deployment and those that wait for this device to be free.
func (b *resultBatch) touch(ctx context.Context, device, deployment string) error {
	b.deployments[deployment] = true
	var waiting []string
	if err := b.tx.SelectContext(ctx, &waiting, `SELECT deployment_id FROM deployment_targets WHERE device_id = $1 AND state = 'pending'`, device); err != nil {
		return translate(err, "find waiting deployments")
	}
	for _, id := range waiting {
		b.deployments[id] = true
	}
	return nil
}

// late keeps a terminal result for a target that had already ended: its state
// stays, what the device runs is known better now.
func (b *resultBatch) late(ctx context.Context, device string, t targetRow, r protocol.Result) error {
	js, err := jsonOrNull(r)
	if err != nil {
		return err
	}
	res, err := b.tx.ExecContext(ctx, `UPDATE deployment_targets SET late_result = $2, updated_at = now() WHERE command_id = $1 AND late_result IS NULL`, r.Command, js)
	if err != nil {
		return translate(err, "keep late result")
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return err // a repeat
	}
	if err := b.history(ctx, device, t, r, true); err != nil {
		return err
	}
	b.events.addAbout(fleet.EventLateResult, t.DeploymentID, device, map[string]any{"device_id": device, "state": r.State, "target": t.State})
	return nil
}

// history adds the row of a target that ran, and after a success stores what
// the device runs now. Nothing ran where a command was refused or cancelled.
func (b *resultBatch) history(ctx context.Context, device string, t targetRow, r protocol.Result, late bool) error {
	status := map[fleet.TargetState]string{fleet.TargetSucceeded: "success", fleet.TargetFailed: "failed", fleet.TargetRolledBack: "rolled_back"}[r.State]
	if status == "" {
		return nil
	}
	_, message := resultError(r)
	if _, err := b.tx.ExecContext(ctx, `INSERT INTO device_bundle_history (device_id, bundle_id, deployment_id, status, error, late, duration_s)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (deployment_id, device_id, late) DO NOTHING`,
		device, t.BundleID, t.DeploymentID, status, message, late, float64(r.DurationMS)/1000); err != nil {
		return translate(err, "write history")
	}
	if r.State != fleet.TargetSucceeded {
		return nil
	}
	// A late result of an older deployment must not hide a newer one's.
	_, err := b.tx.ExecContext(ctx, `INSERT INTO device_status (device_id, bundle_name, bundle_version, release)
		SELECT $1, name, version, release FROM bundles WHERE id = $2 AND NOT EXISTS (
			SELECT 1 FROM device_bundle_history h JOIN deployments n ON n.id = h.deployment_id
			WHERE h.device_id = $1 AND h.status = 'success' AND n.created_at > (SELECT created_at FROM deployments WHERE id = $3))
		ON CONFLICT (device_id) DO UPDATE SET bundle_name = EXCLUDED.bundle_name, bundle_version = EXCLUDED.bundle_version, release = EXCLUDED.release`, device, t.BundleID, t.DeploymentID)
	return translate(err, "store the device's release")
}

func (b *resultBatch) commandDone(ctx context.Context, r protocol.Result) error {
	js, err := jsonOrNull(r)
	if err != nil {
		return err
	}
	_, err = b.tx.ExecContext(ctx, `UPDATE commands SET status = 'done', received_at = COALESCE(received_at, now()), closed_at = now(), result_state = $2, result = $3
		WHERE id = $1 AND status = 'open'`, r.Command, r.State, js)
	return translate(err, "close command")
}

func resultError(r protocol.Result) (code, message string) {
	if r.Error == nil {
		return "", ""
	}
	return string(r.Error.Code), protocol.TrimText(r.Error.Message, 4<<10)
}
