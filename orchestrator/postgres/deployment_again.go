package postgres

import (
	"context"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// deploymentTarget is one device of a deployment that is made from another one
// or from history, with the bundle it gets.
type deploymentTarget struct {
	DeviceID string `db:"device_id"`
	BundleID string `db:"bundle_id"`
}

// draftOf fills in the targets; a bundle that all share stands in the
// deployment itself too.
func draftOf(draft deploymentDraft, targets []deploymentTarget) deploymentDraft {
	for _, t := range targets {
		draft.devices, draft.bundles = append(draft.devices, t.DeviceID), append(draft.bundles, t.BundleID)
	}
	draft.bundle = ""
	for i, b := range draft.bundles {
		if i > 0 && b != draft.bundle {
			draft.bundle = ""
			break
		}
		draft.bundle = b
	}
	return draft
}

// RollbackDevices makes a deployment that takes devices back to a version.
// Unless each of them has it as a success in its history it is
// fleet.CodeInvalid and nothing is stored.
func (d *DB) RollbackDevices(ctx context.Context, r fleet.RollbackRequest, by fleet.Actor) (fleet.Deployment, error) {
	var dep fleet.Deployment
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		devices, err := deploymentDevices(ctx, tx, fleet.DeploymentRequest{Devices: r.Devices, Scope: r.Scope})
		if err != nil {
			return err
		}
		if err := deploymentAllActive(devices); err != nil {
			return err
		}
		targets, err := deploymentBackTo(ctx, tx, devices, r.Bundle, r.Version)
		if err != nil {
			return err
		}
		dep, err = deploymentInsert(ctx, tx, draftOf(deploymentDraft{kind: "rollback", description: r.Description}, targets), by)
		return err
	})
	return dep, err
}

// deploymentBackTo finds for each device the bundle of a version that it has
// run successfully; a name, when given, narrows it.
func deploymentBackTo(ctx context.Context, tx *sqlx.Tx, devices []deploymentDevice, name, version string) ([]deploymentTarget, error) {
	if len(devices) == 0 {
		return nil, fleet.Errorf(fleet.CodeInvalid, "a rollback needs target_device_ids")
	}
	ids := make([]string, len(devices))
	for i, dev := range devices {
		ids[i] = dev.ID
	}
	var targets []deploymentTarget
	if err := tx.SelectContext(ctx, &targets, `SELECT DISTINCT ON (h.device_id) h.device_id, h.bundle_id FROM device_bundle_history h JOIN bundles b ON b.id = h.bundle_id
		WHERE h.device_id = ANY($1) AND h.status = 'success' AND b.version = $2 AND ($3 = '' OR b.name = $3) ORDER BY h.device_id, h.id DESC`,
		pq.Array(ids), version, name); err != nil {
		return nil, translate(err, "read history")
	}
	has := map[string]bool{}
	for _, t := range targets {
		has[t.DeviceID] = true
	}
	var never []string
	for _, id := range ids {
		if !has[id] {
			never = append(never, id)
		}
	}
	if len(never) > 0 {
		what := "version " + version
		if name != "" {
			what = name + " " + version
		}
		return nil, fleet.Errorf(fleet.CodeInvalid, "%s was never deployed successfully on %s: a rollback goes to what a device has run", what, deploymentNames(never))
	}
	return targets, nil
}

// RollbackDeployment makes a deployment that undoes one which has ended: the
// devices that it changed go to a version they have run, or, if that is empty,
// each to what it ran before.
func (d *DB) RollbackDeployment(ctx context.Context, id, version string, scope fleet.Selector, by fleet.Actor) (fleet.Deployment, error) {
	var dep fleet.Deployment
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		old, err := deploymentEnded(ctx, tx, id, scope)
		if err != nil {
			return err
		}
		var changed []struct {
			deploymentDevice
			Previous string `db:"previous"`
		}
		// The bundle before is what the target noted when it was offered; for
		// one that noted nothing, the success before it in the history.
		if err := tx.SelectContext(ctx, &changed, `SELECT d.id, d.status, COALESCE((SELECT b.id FROM bundles b WHERE b.id = t.previous_bundle),
			(SELECT h.bundle_id FROM device_bundle_history h WHERE h.device_id = t.device_id AND h.status = 'success'
				AND h.id < (SELECT min(own.id) FROM device_bundle_history own WHERE own.device_id = t.device_id AND own.deployment_id = t.deployment_id)
				ORDER BY h.id DESC LIMIT 1), '') AS previous
			FROM deployment_targets t JOIN devices d ON d.id = t.device_id
			WHERE t.deployment_id = $1 AND t.state = 'succeeded' AND d.status <> 'revoked' ORDER BY d.id`, id); err != nil {
			return translate(err, "read targets")
		}
		if len(changed) == 0 {
			return fleet.Errorf(fleet.CodeConflict, "deployment %s changed no device that could go back", id)
		}
		var devices []deploymentDevice
		var targets []deploymentTarget
		var none []string
		for _, c := range changed {
			devices = append(devices, c.deploymentDevice)
			targets = append(targets, deploymentTarget{DeviceID: c.ID, BundleID: c.Previous})
			if c.Previous == "" {
				none = append(none, c.ID)
			}
		}
		if err := deploymentAllActive(devices); err != nil {
			return err
		}
		switch {
		case version != "":
			if targets, err = deploymentBackTo(ctx, tx, devices, old.Bundle, version); err != nil {
				return err
			}
		case len(none) > 0:
			return fleet.Errorf(fleet.CodeInvalid, "nothing was deployed before %s on %s: name a target_version", id, deploymentNames(none))
		}
		dep, err = deploymentInsert(ctx, tx, draftOf(deploymentDraft{kind: "rollback", description: "rollback of " + id, rollout: old.Rollout}, targets), by)
		return err
	})
	return dep, err
}

// RetryDeployment makes a deployment like one that has ended, for the devices
// on which it did not succeed.
func (d *DB) RetryDeployment(ctx context.Context, id string, scope fleet.Selector, by fleet.Actor) (fleet.Deployment, error) {
	var dep fleet.Deployment
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		old, err := deploymentEnded(ctx, tx, id, scope)
		if err != nil {
			return err
		}
		var targets []deploymentTarget
		if err := tx.SelectContext(ctx, &targets, `SELECT t.device_id, t.bundle_id FROM deployment_targets t JOIN devices d ON d.id = t.device_id
			WHERE t.deployment_id = $1 AND t.state NOT IN ('succeeded', 'superseded') AND d.status = 'active' ORDER BY t.device_id`, id); err != nil {
			return translate(err, "read targets")
		}
		if len(targets) == 0 {
			return fleet.Errorf(fleet.CodeConflict, "deployment %s has no device to try again", id)
		}
		dep, err = deploymentInsert(ctx, tx, draftOf(deploymentDraft{kind: old.Kind, description: "retry of " + id, rollout: old.Rollout}, targets), by)
		return err
	})
	return dep, err
}

// deploymentEnded reads a deployment that another one is made from: it must
// have ended and lie within scope.
func deploymentEnded(ctx context.Context, tx *sqlx.Tx, id string, scope fleet.Selector) (fleet.Deployment, error) {
	old, err := deploymentGet(ctx, tx, id, scope, "")
	if err != nil {
		return old, err
	}
	if !old.Status.Final() {
		return old, fleet.Errorf(fleet.CodeConflict, "deployment %s is %s: cancel it or wait for its end", id, old.Status)
	}
	return old, deploymentInScope(ctx, tx, id, scope)
}
