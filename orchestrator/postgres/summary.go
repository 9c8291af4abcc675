package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

const fleetDeviceSelect = `SELECT d.id, d.status, COALESCE(s.online, false) AS online, COALESCE(s.health, '') AS health,
	COALESCE(s.bundle_name, '') AS bundle_name, COALESCE(s.bundle_version, '') AS bundle_version,
	COALESCE((SELECT t.deployment_id FROM deployment_targets t WHERE t.device_id = d.id
		AND t.state IN ('pending', 'offered', 'accepted', 'downloading', 'installing', 'verifying') ORDER BY t.updated_at DESC LIMIT 1), '') AS deployment,
	extract(epoch FROM now())::bigint AS at FROM devices d LEFT JOIN device_status s ON s.device_id = d.id`

func (d *DB) fleetDevices(ctx context.Context, q string, args ...any) ([]protocol.FleetDevice, error) {
	var rows []struct {
		ID            string           `db:"id"`
		Status        fleet.Credential `db:"status"`
		Online        bool             `db:"online"`
		Health        string           `db:"health"`
		BundleName    string           `db:"bundle_name"`
		BundleVersion string           `db:"bundle_version"`
		Deployment    string           `db:"deployment"`
		At            int64            `db:"at"`
	}
	if err := d.db.SelectContext(ctx, &rows, fleetDeviceSelect+q, args...); err != nil {
		return nil, translate(err, "read fleet devices")
	}
	out := make([]protocol.FleetDevice, 0, len(rows))
	for _, r := range rows {
		out = append(out, protocol.FleetDevice{
			DeviceID: r.ID, Online: r.Online, Status: fleet.DeviceStatus(r.Status, r.Online, r.Health), Health: r.Health,
			BundleName: r.BundleName, BundleVersion: r.BundleVersion, Deployment: r.Deployment, At: r.At,
		})
	}
	return out, nil
}

// FleetDevices returns the monitoring view of devices; those that do not exist
// are left out.
func (d *DB) FleetDevices(ctx context.Context, ids []string) ([]protocol.FleetDevice, error) {
	return d.fleetDevices(ctx, ` WHERE d.id = ANY($1)`, pq.Array(ids))
}

// FleetDevicesAfter returns the monitoring view of at most limit devices whose
// ids follow after, by id.
func (d *DB) FleetDevicesAfter(ctx context.Context, after string, limit int) ([]protocol.FleetDevice, error) {
	return d.fleetDevices(ctx, ` WHERE d.id > $1 ORDER BY d.id LIMIT $2`, after, limit)
}

// rateWindow is the span over which the rate of a deployment is taken.
const rateWindow = 5 * time.Minute

const fleetDeploymentSelect = `SELECT p.id, COALESCE(b.name, '') AS bundle, COALESCE(b.version, '') AS bundle_version, p.status, p.counts, p.total,
	extract(epoch FROM now())::bigint AS at,
	COALESCE(extract(epoch FROM least(now() - p.started_at, make_interval(secs => $1))), 0)::float8 AS span,
	(SELECT count(*) FROM deployment_targets t WHERE t.deployment_id = p.id AND t.finished_at > now() - make_interval(secs => $1)) AS ended
	FROM deployments p LEFT JOIN bundles b ON b.id = p.bundle_id`

func (d *DB) fleetDeployments(ctx context.Context, q string, args ...any) ([]protocol.FleetDeployment, error) {
	var rows []struct {
		ID      string                 `db:"id"`
		Bundle  string                 `db:"bundle"`
		Version string                 `db:"bundle_version"`
		Status  fleet.DeploymentStatus `db:"status"`
		Counts  []byte                 `db:"counts"`
		Total   int                    `db:"total"`
		At      int64                  `db:"at"`
		Span    float64                `db:"span"`
		Ended   int                    `db:"ended"`
	}
	if err := d.db.SelectContext(ctx, &rows, fleetDeploymentSelect+q, append([]any{rateWindow.Seconds()}, args...)...); err != nil {
		return nil, translate(err, "read fleet deployments")
	}
	out := make([]protocol.FleetDeployment, 0, len(rows))
	for _, r := range rows {
		f := protocol.FleetDeployment{
			ID: r.ID, Bundle: r.Bundle, BundleVersion: r.Version, Status: r.Status, Counts: map[fleet.TargetState]int{}, Total: r.Total, At: r.At,
		}
		if err := json.Unmarshal(r.Counts, &f.Counts); err != nil {
			return nil, fmt.Errorf("decode counts of deployment %s: %w", r.ID, err)
		}
		fleetRate(&f, r.Ended, r.Span)
		out = append(out, f)
	}
	return out, nil
}

// fleetRate sets the rate, from targets that ended in a span of seconds, and
// from it how long the rest will take.
func fleetRate(f *protocol.FleetDeployment, ended int, span float64) {
	open := 0
	for state, n := range f.Counts {
		if !state.Final() {
			open += n
		}
	}
	if f.Status.Final() || span <= 0 || ended == 0 {
		return
	}
	f.RatePerMin = float64(ended) / max(span, 1) * 60
	f.ETAS = int64(float64(open) / f.RatePerMin * 60)
}

// FleetDeployments returns the monitoring view of deployments.
func (d *DB) FleetDeployments(ctx context.Context, ids []string) ([]protocol.FleetDeployment, error) {
	return d.fleetDeployments(ctx, ` WHERE p.id = ANY($2)`, pq.Array(ids))
}

// OpenDeployments returns the monitoring view of every deployment that has not
// ended or ended less than keep ago.
func (d *DB) OpenDeployments(ctx context.Context, keep time.Duration) ([]protocol.FleetDeployment, error) {
	return d.fleetDeployments(ctx, ` WHERE p.status IN ('pending', 'awaiting_approval', 'in_progress', 'paused') OR p.finished_at > now() - make_interval(secs => $2)
		ORDER BY p.created_at`, keep.Seconds())
}

// EndedDeployments returns the ids of deployments that ended between from and
// to ago.
func (d *DB) EndedDeployments(ctx context.Context, from, to time.Duration) ([]string, error) {
	var ids []string
	err := d.db.SelectContext(ctx, &ids, `SELECT id FROM deployments WHERE finished_at > now() - make_interval(secs => $1) AND finished_at <= now() - make_interval(secs => $2)`,
		from.Seconds(), to.Seconds())
	return ids, translate(err, "list ended deployments")
}

// FleetSummary returns the fleet's totals.
func (d *DB) FleetSummary(ctx context.Context) (protocol.FleetSummary, error) {
	s := protocol.FleetSummary{Statuses: map[string]int{}, Versions: map[string]int{}}
	var rows []struct {
		Status  fleet.Credential `db:"status"`
		Online  bool             `db:"online"`
		Error   bool             `db:"error"`
		Name    string           `db:"name"`
		Version string           `db:"version"`
		N       int              `db:"n"`
	}
	if err := d.db.SelectContext(ctx, &rows, `SELECT d.status, COALESCE(s.online, false) AS online, COALESCE(s.health = 'error', false) AS error,
			COALESCE(s.bundle_name, '') AS name, COALESCE(s.bundle_version, '') AS version, count(*) AS n
		FROM devices d LEFT JOIN device_status s ON s.device_id = d.id GROUP BY 1, 2, 3, 4, 5`); err != nil {
		return s, translate(err, "count devices")
	}
	for _, r := range rows {
		s.Devices += r.N
		if r.Online {
			s.Online += r.N
		}
		health := ""
		if r.Error {
			health = "error"
		}
		s.Statuses[fleet.DeviceStatus(r.Status, r.Online, health)] += r.N
		if r.Version != "" {
			s.Versions[r.Name+" "+r.Version] += r.N
		}
	}
	var rest struct {
		Open int   `db:"open"`
		At   int64 `db:"at"`
	}
	err := d.db.GetContext(ctx, &rest, `SELECT count(*) AS open, extract(epoch FROM now())::bigint AS at FROM deployments WHERE status IN ('pending', 'awaiting_approval', 'in_progress', 'paused')`)
	s.Deployments, s.At = rest.Open, rest.At
	return s, translate(err, "count deployments")
}
