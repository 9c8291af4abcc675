package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// deploymentDevice is what decides whether a device may be a target.
type deploymentDevice struct {
	ID           string           `db:"id"`
	Credential   fleet.Credential `db:"status"`
	Labels       []byte           `db:"labels"`
	DeviceType   string           `db:"device_type"`
	Arch         string           `db:"arch"`
	AgentVersion string           `db:"agent_version"`
	Release      string           `db:"release"`
}

// CreateDeployment stores a deployment and its targets in one transaction. A
// bundle or device that does not exist, a device that may get no commands and a
// selector that chooses nobody are refused; devices that a selector chooses and
// that may get no commands are left out.
func (d *DB) CreateDeployment(ctx context.Context, r fleet.DeploymentRequest, by fleet.Actor) (fleet.Deployment, error) {
	var dep fleet.Deployment
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		b, err := deploymentBundle(ctx, tx, r.Bundle, r.Version)
		if err != nil {
			return err
		}
		devices, err := deploymentDevices(ctx, tx, r)
		if err != nil {
			return err
		}
		draft := deploymentDraft{kind: "deploy", bundle: b.ID, description: r.Description, rollout: r.Rollout}
		if r.Selector != nil {
			draft.selector = r.Selector.String()
		}
		for _, dev := range devices {
			if r.Selector == nil || dev.Credential == fleet.CredentialActive {
				draft.devices, draft.bundles = append(draft.devices, dev.ID), append(draft.bundles, b.ID)
			}
		}
		if err := deploymentSomebody(r, len(draft.devices)); err != nil {
			return err
		}
		if r.Selector == nil {
			if err := deploymentAllActive(devices); err != nil {
				return err
			}
		}
		dep, err = deploymentInsert(ctx, tx, draft, by)
		return err
	})
	return dep, err
}

// deploymentBundle finds a bundle by name and version.
func deploymentBundle(ctx context.Context, tx *sqlx.Tx, name, version string) (fleet.Bundle, error) {
	var rows []bundleRow
	if err := tx.SelectContext(ctx, &rows, bundleSelect+` WHERE b.name = $1 AND b.version = $2`, name, version); err != nil {
		return fleet.Bundle{}, translate(err, "read bundle")
	}
	if len(rows) == 0 {
		return fleet.Bundle{}, fleet.Errorf(fleet.CodeNotFound, "bundle %q version %q does not exist: upload it first", name, version)
	}
	return rows[0].bundle(), nil
}

// deploymentDevices reads the devices that r names or selects. One that does
// not exist or that is out of scope refuses the whole request.
func deploymentDevices(ctx context.Context, tx *sqlx.Tx, r fleet.DeploymentRequest) ([]deploymentDevice, error) {
	w := &where{}
	if r.Selector != nil {
		w.selector("d.labels", *r.Selector)
		w.and("d.status <> 'revoked'")
	} else {
		w.and("d.id = ANY(%s::text[])", pq.Array(r.Devices))
	}
	var devices []deploymentDevice
	if err := tx.SelectContext(ctx, &devices, `SELECT d.id, d.status, d.labels, d.device_type, COALESCE(s.arch, '') AS arch, COALESCE(s.agent_version, '') AS agent_version,
		COALESCE(s.release, '') AS release FROM devices d LEFT JOIN device_status s ON s.device_id = d.id`+w.sql()+` ORDER BY d.id`, w.args...); err != nil {
		return nil, translate(err, "read devices")
	}
	found := map[string]bool{}
	for _, dev := range devices {
		var labels fleet.Labels
		if err := json.Unmarshal(dev.Labels, &labels); err != nil {
			return nil, fmt.Errorf("decode labels of device %s: %w", dev.ID, err)
		}
		found[dev.ID] = r.Scope.Matches(labels) // one outside is, to this caller, not there
		if r.Selector != nil && !found[dev.ID] {
			return nil, fleet.Errorf(fleet.CodeForbidden, "selector %q chooses devices outside of this token's scope %s: narrow it", r.Selector, r.Scope)
		}
	}
	var missing []string
	for _, id := range r.Devices {
		if !found[id] {
			missing = append(missing, fmt.Sprintf("%.63q", id))
		}
	}
	switch {
	case len(missing) > 0 && len(r.Scope) > 0:
		return nil, fleet.Errorf(fleet.CodeForbidden, "no device %s within this token's scope", deploymentNames(missing))
	case len(missing) > 0:
		return nil, fleet.Errorf(fleet.CodeNotFound, "no such device: %s", deploymentNames(missing))
	}
	return devices, nil
}

// deploymentAllActive refuses devices that may get no commands.
func deploymentAllActive(devices []deploymentDevice) error {
	var names []string
	for _, dev := range devices {
		if dev.Credential != fleet.CredentialActive {
			names = append(names, fmt.Sprintf("%s is %s", dev.ID, dev.Credential))
		}
	}
	if len(names) > 0 {
		return fleet.Errorf(fleet.CodeConflict, "only active devices get commands: %s", deploymentNames(names))
	}
	return nil
}

func deploymentSomebody(r fleet.DeploymentRequest, targets int) error {
	switch {
	case targets > 0:
		return nil
	case r.Selector != nil:
		return fleet.Errorf(fleet.CodeInvalid, "selector %q chooses no device that may get commands", r.Selector)
	}
	return fleet.Errorf(fleet.CodeInvalid, "a deployment needs target_devices or a selector")
}

// deploymentNames shows at most five names of a list.
func deploymentNames(names []string) string {
	if len(names) > 5 {
		return strings.Join(names[:5], ", ") + fmt.Sprintf(" and %d more", len(names)-5)
	}
	return strings.Join(names, ", ")
}

// errPlanned ends the transaction of a plan without storing anything.
var errPlanned = errors.New("planned")

// PlanDeployment says what CreateDeployment would do with the same request and
// refuses what it would refuse. Nothing is stored.
func (d *DB) PlanDeployment(ctx context.Context, r fleet.DeploymentRequest) (fleet.Plan, error) {
	plan := fleet.Plan{Waves: 1, Refused: []fleet.PlanRefusal{}}
	err := d.tx(ctx, func(tx *sqlx.Tx) error {
		b, err := deploymentBundle(ctx, tx, r.Bundle, r.Version)
		if err != nil {
			return err
		}
		if err := bundlesTrusted(ctx, tx, b.ID); err != nil {
			return err
		}
		m, err := bundle.ParseManifest(b.Manifest)
		if err != nil {
			return fmt.Errorf("parse manifest of bundle %s: %w", b.ID, err)
		}
		devices, err := deploymentDevices(ctx, tx, r)
		if err != nil {
			return err
		}
		for _, dev := range devices {
			switch err := deploymentFits(m, dev); {
			case dev.Credential != fleet.CredentialActive:
				plan.Refused = append(plan.Refused, fleet.PlanRefusal{DeviceID: dev.ID, Code: fleet.CodeConflict, Reason: "the device is " + string(dev.Credential)})
			case err != nil:
				plan.Refused = append(plan.Refused, fleet.PlanRefusal{DeviceID: dev.ID, Code: fleet.ErrorCode(err), Reason: fleet.ErrorMessage(err)})
			default:
				plan.Devices++
				if dev.Release != b.Release {
					plan.Bytes += b.Size
				}
			}
		}
		if err := deploymentSomebody(r, plan.Devices+len(plan.Refused)); err != nil {
			return err
		}
		if err := tx.GetContext(ctx, &plan.DurationS, `SELECT COALESCE(round(percentile_cont(0.95) WITHIN GROUP (ORDER BY h.duration_s)), 0)::bigint
			FROM device_bundle_history h JOIN bundles b ON b.id = h.bundle_id WHERE b.name = $1 AND h.status = 'success'`, b.Name); err != nil {
			return translate(err, "read earlier durations")
		}
		return errPlanned
	})
	if errors.Is(err, errPlanned) {
		err = nil
	}
	return plan, err
}

// deploymentFits checks a device against a manifest as far as it has told us
// what it is.
func deploymentFits(m *bundle.Manifest, dev deploymentDevice) error {
	if dev.Arch == "" {
		return nil
	}
	return m.Fits(bundle.Device{Arch: dev.Arch, Type: dev.DeviceType, AgentVersion: dev.AgentVersion})
}
