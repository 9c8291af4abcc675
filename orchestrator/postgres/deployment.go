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

type deploymentRow struct {
	ID            string                 `db:"id"`
	Kind          string                 `db:"kind"`
	BundleID      string                 `db:"bundle_id"`
	Bundle        string                 `db:"bundle_name"`
	BundleVersion string                 `db:"bundle_version"`
	Description   string                 `db:"description"`
	Status        fleet.DeploymentStatus `db:"status"`
	Reason        string                 `db:"reason"`
	Selector      string                 `db:"selector"`
	Rollout       []byte                 `db:"rollout"`
	Counts        []byte                 `db:"counts"`
	Total         int                    `db:"total"`
	Deadline      time.Time              `db:"deadline"`
	CreatedAt     time.Time              `db:"created_at"`
	CreatedBy     string                 `db:"created_by"`
	StartedAt     *time.Time             `db:"started_at"`
	FinishedAt    *time.Time             `db:"finished_at"`
}

// deploymentColumns reads deploymentRow; its counts are as of now. The engine's
// own counts column would be a moment behind for whoever watches.
const deploymentColumns = `dep.id, dep.kind, COALESCE(dep.bundle_id, '') AS bundle_id, COALESCE(b.name, '') AS bundle_name, COALESCE(b.version, '') AS bundle_version,
	dep.description, dep.status, dep.reason, dep.selector, dep.rollout,
	COALESCE((SELECT jsonb_object_agg(c.state, c.n) FROM (SELECT t.state, count(*) AS n FROM deployment_targets t WHERE t.deployment_id = dep.id GROUP BY t.state) c), '{}') AS counts,
	dep.total, dep.deadline, dep.created_at, dep.created_by, dep.started_at, dep.finished_at`

const deploymentFrom = ` FROM deployments dep LEFT JOIN bundles b ON b.id = dep.bundle_id`

func (r deploymentRow) deployment() (fleet.Deployment, error) {
	dep := fleet.Deployment{
		ID: r.ID, Kind: r.Kind, Bundle: r.Bundle, BundleVersion: r.BundleVersion, BundleID: r.BundleID, Description: r.Description,
		Status: r.Status, Reason: r.Reason, Selector: r.Selector, Progress: map[fleet.TargetState]int{}, Total: r.Total,
		Deadline: r.Deadline.UTC(), CreatedAt: r.CreatedAt.UTC(), CreatedBy: r.CreatedBy, StartedAt: utcTime(r.StartedAt), FinishedAt: utcTime(r.FinishedAt),
	}
	if err := json.Unmarshal(r.Rollout, &dep.Rollout); err != nil {
		return dep, fmt.Errorf("decode rollout of deployment %s: %w", r.ID, err)
	}
	if err := json.Unmarshal(r.Counts, &dep.Progress); err != nil {
		return dep, fmt.Errorf("decode counts of deployment %s: %w", r.ID, err)
	}
	return dep, nil
}

// deploymentScope lets a token with a scope see the deployments that have a
// device of it among their targets.
func deploymentScope(w *where, scope fleet.Selector) {
	if len(scope) == 0 {
		return
	}
	in := &where{args: w.args}
	in.selector("d.labels", scope)
	w.args = in.args
	w.conds = append(w.conds, `EXISTS (SELECT 1 FROM deployment_targets t JOIN devices d ON d.id = t.device_id`+in.sql()+` AND t.deployment_id = dep.id)`)
}

// Deployments lists deployments, newest first.
func (d *DB) Deployments(ctx context.Context, f fleet.DeploymentFilter, p fleet.Page) (fleet.List[fleet.Deployment], error) {
	var list fleet.List[fleet.Deployment]
	w := &where{}
	deploymentScope(w, f.Scope)
	if f.Status != "" {
		w.and("dep.status = %s", string(f.Status))
	}
	var total int
	if err := d.db.GetContext(ctx, &total, `SELECT count(*) FROM deployments dep`+w.sql(), w.args...); err != nil {
		return list, translate(err, "count deployments")
	}
	if err := w.cursorTime("dep.", p.Cursor); err != nil {
		return list, err
	}
	var rows []deploymentRow
	q := `SELECT ` + deploymentColumns + deploymentFrom + w.sql() + ` ORDER BY dep.created_at DESC, dep.id DESC LIMIT ` + w.arg(p.Limit+1)
	if err := d.db.SelectContext(ctx, &rows, q, w.args...); err != nil {
		return list, translate(err, "list deployments")
	}
	deployments, err := mapRows(rows, deploymentRow.deployment)
	if err != nil {
		return list, err
	}
	return cut(deployments, p.Limit, total, func(v fleet.Deployment) string { return cursorAt(v.CreatedAt, v.ID) }), nil
}

// Deployment returns one deployment with its progress.
func (d *DB) Deployment(ctx context.Context, id string, scope fleet.Selector) (fleet.Deployment, error) {
	return deploymentGet(ctx, d.db, id, scope, "")
}

func deploymentGet(ctx context.Context, q sqlx.QueryerContext, id string, scope fleet.Selector, lock string) (fleet.Deployment, error) {
	w := &where{}
	w.and("dep.id = %s", id)
	deploymentScope(w, scope)
	var rows []deploymentRow
	if err := sqlx.SelectContext(ctx, q, &rows, `SELECT `+deploymentColumns+deploymentFrom+w.sql()+lock, w.args...); err != nil {
		return fleet.Deployment{}, translate(err, "read deployment")
	}
	if len(rows) == 0 {
		return fleet.Deployment{}, fleet.Errorf(fleet.CodeNotFound, "deployment %q does not exist", id)
	}
	return rows[0].deployment()
}

// Targets lists a deployment's targets by device id; a scope leaves out those
// that the caller may not see.
func (d *DB) Targets(ctx context.Context, id string, scope fleet.Selector, state fleet.TargetState, p fleet.Page) (fleet.List[fleet.Target], error) {
	var list fleet.List[fleet.Target]
	if _, err := d.Deployment(ctx, id, scope); err != nil {
		return list, err
	}
	w := &where{}
	w.and("t.deployment_id = %s", id)
	w.selector("d.labels", scope)
	if state != "" {
		w.and("t.state = %s", string(state))
	}
	const from = ` FROM deployment_targets t JOIN devices d ON d.id = t.device_id JOIN bundles b ON b.id = t.bundle_id`
	var total int
	if err := d.db.GetContext(ctx, &total, `SELECT count(*)`+from+w.sql(), w.args...); err != nil {
		return list, translate(err, "count targets")
	}
	if p.Cursor != "" {
		after, err := cursorParts(p.Cursor, 1)
		if err != nil {
			return list, err
		}
		w.and("t.device_id > %s", after[0])
	}
	var rows []fleet.Target
	if err := d.db.SelectContext(ctx, &rows, `SELECT t.deployment_id, t.device_id, t.bundle_id, b.version AS bundle_version, t.state, t.step, t.error_code, t.error_message,
		t.output, t.bytes, t.previous_version, t.deadline, t.offered_at, t.accepted_at, t.finished_at, t.duration_ms`+
		from+w.sql()+` ORDER BY t.device_id LIMIT `+w.arg(p.Limit+1), w.args...); err != nil {
		return list, translate(err, "list targets")
	}
	for i := range rows {
		t := &rows[i]
		t.Deadline = t.Deadline.UTC()
		t.OfferedAt, t.AcceptedAt, t.FinishedAt = utcTime(t.OfferedAt), utcTime(t.AcceptedAt), utcTime(t.FinishedAt)
	}
	return cut(rows, p.Limit, total, func(t fleet.Target) string { return cursorText(t.DeviceID) }), nil
}

// deploymentDraft is a deployment about to be stored: one bundle for all, or
// one each.
type deploymentDraft struct {
	kind        string
	bundle      string // bundle id that all targets share; "" when they differ
	description string
	selector    string
	rollout     fleet.Rollout
	devices     []string
	bundles     []string // bundle id of the device at the same place
}

// deploymentInsert stores a draft: the deployment and its targets, or nothing.
// deadline = now + timeout by the database's clock; a target that accepts gets
// its device's own step timeout.
func deploymentInsert(ctx context.Context, tx *sqlx.Tx, draft deploymentDraft, by fleet.Actor) (fleet.Deployment, error) {
	var none fleet.Deployment
	if err := bundlesTrusted(ctx, tx, draft.bundles...); err != nil {
		return none, err
	}
	rollout, err := jsonOrNull(draft.rollout)
	if err != nil {
		return none, err
	}
	timeout := draft.rollout.TimeoutS
	if timeout == 0 {
		timeout = fleet.DefaultRolloutTimeout
	}
	id := fleet.NewID("dep")
	if _, err := tx.ExecContext(ctx, `INSERT INTO deployments (id, kind, bundle_id, description, status, selector, rollout, deadline, counts, total, created_by)
		VALUES ($1, $2, NULLIF($3, ''), $4, 'pending', $5, $6, now() + make_interval(secs => $7), jsonb_build_object('pending', $8::int), $8, $9)`,
		id, draft.kind, draft.bundle, draft.description, draft.selector, rollout, timeout, len(draft.devices), by.Name); err != nil {
		return none, translate(err, "store deployment")
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO deployment_targets (deployment_id, device_id, bundle_id, state, deadline, timeout_s)
		SELECT dep.id, t.device, t.bundle, 'pending', dep.deadline, COALESCE(c.deploy_timeout_s, $4)
		FROM unnest($2::text[], $3::text[]) AS t(device, bundle) JOIN deployments dep ON dep.id = $1 LEFT JOIN device_configs c ON c.device_id = t.device`,
		id, pq.Array(draft.devices), pq.Array(draft.bundles), fleet.DefaultConfig().DeployTimeoutS); err != nil {
		return none, translate(err, "store targets")
	}
	dep, err := deploymentGet(ctx, tx, id, nil, "")
	if err != nil {
		return none, err
	}
	if err := audit(ctx, tx, by, "deployment.create", id, nil, map[string]any{
		"kind": dep.Kind, "bundle": dep.Bundle, "bundle_version": dep.BundleVersion, "selector": dep.Selector, "devices": dep.Total, "rollout": dep.Rollout,
	}); err != nil {
		return none, err
	}
	if err := event(ctx, tx, fleet.EventDeploymentCreated, id, "", dep); err != nil {
		return none, err
	}
	if err := notify(ctx, tx, WorkRollout); err != nil {
		return none, err
	}
	return dep, onceDone(ctx, tx, http.StatusCreated, dep)
}

// CancelDeployment asks for the end of a deployment; the engine cancels what is
// open. Asking again changes nothing; a deployment that has ended is a conflict.
func (d *DB) CancelDeployment(ctx context.Context, id string, scope fleet.Selector, by fleet.Actor) (fleet.Deployment, error) {
	var dep fleet.Deployment
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		before, err := deploymentGet(ctx, tx, id, scope, " FOR UPDATE OF dep")
		if err != nil {
			return err
		}
		if before.Status == fleet.DeploymentCancelled {
			dep = before
			return nil
		}
		if before.Status.Final() {
			return fleet.Errorf(fleet.CodeConflict, "deployment %s has ended: %s", id, before.Status)
		}
		if err := deploymentInScope(ctx, tx, id, scope); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE deployments SET cancel = true, dirty = true, reason = CASE WHEN reason = '' THEN $2 ELSE reason END WHERE id = $1`,
			id, "cancelled by "+by.Name); err != nil {
			return translate(err, "cancel deployment")
		}
		if err := audit(ctx, tx, by, "deployment.cancel", id, map[string]any{"status": before.Status}, nil); err != nil {
			return err
		}
		if err := notify(ctx, tx, WorkRollout); err != nil {
			return err
		}
		if dep, err = deploymentGet(ctx, tx, id, nil, ""); err != nil {
			return err
		}
		return onceDone(ctx, tx, http.StatusOK, dep)
	})
	return dep, err
}

// deploymentInScope refuses a change to a deployment that also goes to devices
// outside of the caller's scope.
func deploymentInScope(ctx context.Context, tx *sqlx.Tx, id string, scope fleet.Selector) error {
	if len(scope) == 0 {
		return nil
	}
	w := &where{}
	w.selector("d.labels", scope)
	var all, in int
	if err := tx.GetContext(ctx, &in, `SELECT count(*) FROM deployment_targets t JOIN devices d ON d.id = t.device_id`+w.sql()+` AND t.deployment_id = `+w.arg(id), w.args...); err != nil {
		return translate(err, "count targets")
	}
	if err := tx.GetContext(ctx, &all, `SELECT count(*) FROM deployment_targets WHERE deployment_id = $1`, id); err != nil {
		return translate(err, "count targets")
	}
	if in != all {
		return fleet.Errorf(fleet.CodeForbidden, "deployment %s has targets outside of this token's scope %s", id, scope)
	}
	return nil
}
