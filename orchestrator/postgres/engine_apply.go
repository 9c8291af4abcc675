package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// cancelLife is how long a device that is away may still be told to give up, at
// least: as long as its target can be open for want of an answer.
const cancelLife = 24 * time.Hour

// applier applies decisions in the transaction that holds the deployment. Every
// write is guarded by the state it starts from, and targets that someone else
// is changing are skipped: whoever does that marks the deployment again.
type applier struct {
	tx         *sqlx.Tx
	deployment engineDeployment
	events     reportEvents
	others     []string // other deployments that lost a target or may go on
	changed    bool
	again      bool // something was skipped because someone else is at it
}

func (a *applier) apply(ctx context.Context, dec fleet.Decision) error {
	switch dec.Action {
	case fleet.RolloutStart:
		return a.status(ctx, fleet.DeploymentInProgress, "")
	case fleet.RolloutFinish:
		return a.status(ctx, dec.Status, dec.Reason)
	case fleet.RolloutOffer:
		return a.offer(ctx, dec.Devices)
	case fleet.RolloutEnd:
		return a.endTargets(ctx, dec)
	case fleet.RolloutAskCancel:
		return a.askCancel(ctx, dec.Devices)
	}
	return fmt.Errorf("unknown decision %q", dec.Action)
}

func (a *applier) status(ctx context.Context, to fleet.DeploymentStatus, reason string) error {
	if !a.deployment.Status.CanBecome(to) {
		return fmt.Errorf("deployment is %s and cannot become %s", a.deployment.Status, to)
	}
	// Who cancelled is known already and stays.
	if _, err := a.tx.ExecContext(ctx, `UPDATE deployments SET status = $2, reason = CASE WHEN $2 = 'cancelled' AND $3 = '' THEN reason ELSE $3 END, started_at = COALESCE(started_at, now()),
		finished_at = CASE WHEN $4 THEN now() END WHERE id = $1`, a.deployment.ID, to, reason, to.Final()); err != nil {
		return translate(err, "set status")
	}
	a.deployment.Status, a.changed = to, true
	a.events.addAbout(fleet.EventDeploymentStatus, a.deployment.ID, "", map[string]any{"status": to, "reason": reason})
	return nil
}

// offer gives pending targets their command. Older deployments lose their
// targets on the same devices, unless the device is at work on one: then the
// new target waits for that to end.
func (a *applier) offer(ctx context.Context, devices []string) error {
	if err := a.supersede(ctx, devices); err != nil {
		return err
	}
	var rows []struct {
		DeviceID string `db:"device_id"`
		BundleID string `db:"bundle_id"`
		TimeoutS int    `db:"timeout_s"`
	}
	if err := a.tx.SelectContext(ctx, &rows, `SELECT t.device_id, t.bundle_id, t.timeout_s FROM deployment_targets t
		WHERE t.deployment_id = $1 AND t.device_id = ANY($2) AND t.state = 'pending' AND NOT EXISTS (
			SELECT 1 FROM deployment_targets o JOIN deployments p ON p.id = o.deployment_id WHERE o.device_id = t.device_id AND o.deployment_id <> $1
			AND (o.state IN ('accepted', 'downloading', 'installing', 'verifying') OR o.state IN ('pending', 'offered') AND (p.created_at, p.id) < ($3, $1)))
		ORDER BY t.device_id FOR UPDATE OF t SKIP LOCKED`, a.deployment.ID, pq.Array(devices), a.deployment.CreatedAt); err != nil {
		return translate(err, "lock pending targets")
	}
	a.again = a.again || len(rows) < len(devices)
	if len(rows) == 0 {
		return nil
	}
	list := make([]commandNew, 0, len(rows))
	for _, r := range rows {
		list = append(list, commandNew{device: r.DeviceID, body: fleet.DeployBody{Deployment: a.deployment.ID, BundleID: r.BundleID, StepTimeoutS: r.TimeoutS}})
	}
	ids, err := commandAdd(ctx, a.tx, a.deployment.Kind, list, a.deployment.Deadline)
	if err != nil {
		return err
	}
	var device, command pq.StringArray
	for d, c := range ids {
		device, command = append(device, d), append(command, c)
	}
	if _, err := a.tx.ExecContext(ctx, `UPDATE deployment_targets t SET state = 'offered', command_id = b.command_id, offered_at = now(), updated_at = now(),
			previous_bundle = COALESCE(p.id, ''), previous_version = COALESCE(s.bundle_version, '')
		FROM unnest($2::text[], $3::text[]) AS b (device_id, command_id)
		LEFT JOIN device_status s ON s.device_id = b.device_id LEFT JOIN bundles p ON p.release = s.release
		WHERE t.deployment_id = $1 AND t.device_id = b.device_id`, a.deployment.ID, device, command); err != nil {
		return translate(err, "offer targets")
	}
	a.changed = true
	return nil
}

func (a *applier) supersede(ctx context.Context, devices []string) error {
	var rows []endedRow
	if err := a.tx.SelectContext(ctx, &rows, `SELECT o.deployment_id, o.device_id, o.bundle_id, COALESCE(o.command_id, '') AS command_id
		FROM deployment_targets o JOIN deployments p ON p.id = o.deployment_id
		WHERE o.device_id = ANY($2) AND o.deployment_id <> $1 AND o.state IN ('pending', 'offered') AND (p.created_at, p.id) < ($3, $1)
		ORDER BY o.device_id FOR UPDATE OF o SKIP LOCKED`, a.deployment.ID, pq.Array(devices), a.deployment.CreatedAt); err != nil {
		return translate(err, "find older targets")
	}
	if len(rows) == 0 {
		return nil
	}
	for _, r := range rows {
		a.others = append(a.others, r.DeploymentID)
	}
	return a.finishTargets(ctx, rows, fleet.TargetSuperseded, string(fleet.CodeSuperseded), "deployment "+a.deployment.ID+" took its place")
}

type endedRow struct {
	DeploymentID string `db:"deployment_id"`
	DeviceID     string `db:"device_id"`
	BundleID     string `db:"bundle_id"`
	CommandID    string `db:"command_id"`
}

// endTargets ends targets whose time is over or that are cancelled before they
// were sent.
func (a *applier) endTargets(ctx context.Context, dec fleet.Decision) error {
	var from []string
	for _, s := range fleet.TargetStates {
		if s.CanBecome(dec.State) && (dec.State != fleet.TargetCancelled || !s.Active()) {
			from = append(from, string(s))
		}
	}
	byDeadline := dec.State == fleet.TargetExpired || dec.State == fleet.TargetTimedOut
	var rows []endedRow
	if err := a.tx.SelectContext(ctx, &rows, `SELECT deployment_id, device_id, bundle_id, COALESCE(command_id, '') AS command_id FROM deployment_targets
		WHERE deployment_id = $1 AND device_id = ANY($2) AND state = ANY($3) AND (NOT $4 OR deadline <= now()) ORDER BY device_id FOR UPDATE SKIP LOCKED`,
		a.deployment.ID, pq.Array(dec.Devices), pq.Array(from), byDeadline); err != nil {
		return translate(err, "lock targets")
	}
	code := map[fleet.TargetState]fleet.Code{
		fleet.TargetExpired: fleet.CodeExpired, fleet.TargetTimedOut: fleet.CodeTimeout, fleet.TargetCancelled: fleet.CodeCancelled,
	}[dec.State]
	return a.finishTargets(ctx, rows, dec.State, string(code), dec.Reason)
}

// finishTargets ends locked targets and their commands. A cancelled target
// whose command has just gone out stays: the device is asked to give it up.
func (a *applier) finishTargets(ctx context.Context, rows []endedRow, to fleet.TargetState, code, message string) error {
	var commands pq.StringArray
	for _, r := range rows {
		if r.CommandID != "" {
			commands = append(commands, r.CommandID)
		}
	}
	closed := map[string]bool{"": true}
	if len(commands) > 0 {
		status := "expired"
		if to == fleet.TargetCancelled || to == fleet.TargetSuperseded {
			status = "cancelled"
		}
		if _, err := a.tx.ExecContext(ctx, `SELECT 1 FROM commands WHERE id = ANY($1) ORDER BY device_id, id FOR NO KEY UPDATE`, commands); err != nil {
			return translate(err, "lock commands")
		}
		var ids []string
		if err := a.tx.SelectContext(ctx, &ids, `UPDATE commands c SET status = $2, closed_at = now() FROM devices d
			WHERE c.id = ANY($1) AND d.id = c.device_id AND c.status = 'open' AND (NOT $3 OR c.sends = 0 OR d.status = 'revoked') RETURNING c.id`,
			commands, status, to == fleet.TargetCancelled); err != nil {
			return translate(err, "close commands")
		}
		for _, id := range ids {
			closed[id] = true
		}
	}
	var deployment, device pq.StringArray
	for _, r := range rows {
		if to == fleet.TargetCancelled && !closed[r.CommandID] {
			continue
		}
		deployment, device = append(deployment, r.DeploymentID), append(device, r.DeviceID)
		a.events.addAbout(fleet.EventDeploymentTarget, r.DeploymentID, r.DeviceID, map[string]any{"device_id": r.DeviceID, "state": to, "error_code": code, "error": message})
	}
	if len(device) == 0 {
		return nil
	}
	a.changed = true
	_, err := a.tx.ExecContext(ctx, `WITH b AS (SELECT * FROM unnest($1::text[], $2::text[]) AS b (deployment_id, device_id)),
		ended AS (UPDATE deployment_targets t SET state = $3, error_code = $4, error_message = $5, finished_at = now(), updated_at = now(),
				duration_ms = COALESCE(extract(epoch FROM now() - t.accepted_at) * 1000, 0)::bigint
			FROM b WHERE t.deployment_id = b.deployment_id AND t.device_id = b.device_id RETURNING t.*)
		INSERT INTO device_bundle_history (device_id, bundle_id, deployment_id, status, error, duration_s)
		SELECT device_id, bundle_id, deployment_id, 'failed', error_message, duration_ms / 1000.0 FROM ended WHERE state = 'timed_out'
		ON CONFLICT (deployment_id, device_id, late) DO NOTHING`, deployment, device, to, code, message)
	if err != nil || to != fleet.TargetTimedOut {
		return translate(err, "end targets")
	}
	// Their devices are free for whatever waits for them.
	var waiting []string
	if err := a.tx.SelectContext(ctx, &waiting, `SELECT DISTINCT deployment_id FROM deployment_targets WHERE device_id = ANY($1) AND state = 'pending' AND deployment_id <> $2`,
		device, a.deployment.ID); err != nil {
		return translate(err, "find waiting deployments")
	}
	a.others = append(a.others, waiting...)
	return nil
}

// askCancel sends a cancel command for targets that the device may have.
func (a *applier) askCancel(ctx context.Context, devices []string) error {
	var rows []endedRow
	if err := a.tx.SelectContext(ctx, &rows, `SELECT deployment_id, device_id, bundle_id, command_id FROM deployment_targets
		WHERE deployment_id = $1 AND device_id = ANY($2) AND command_id IS NOT NULL AND state IN ('offered', 'accepted', 'downloading', 'installing', 'verifying')
		ORDER BY device_id FOR UPDATE SKIP LOCKED`, a.deployment.ID, pq.Array(devices)); err != nil {
		return translate(err, "lock targets")
	}
	if len(rows) == 0 {
		return nil
	}
	list := make([]commandNew, 0, len(rows))
	for _, r := range rows {
		list = append(list, commandNew{device: r.DeviceID, body: protocol.Cancel{Command: r.CommandID}})
	}
	var until time.Time
	if err := a.tx.GetContext(ctx, &until, `SELECT greatest(now() + make_interval(secs => $1), $2)`, cancelLife.Seconds(), a.deployment.Deadline); err != nil {
		return translate(err, "read the clock")
	}
	if _, err := commandAdd(ctx, a.tx, string(protocol.CommandCancel), list, until); err != nil {
		return err
	}
	a.changed = true
	return nil
}
