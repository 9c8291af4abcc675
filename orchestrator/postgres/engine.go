package postgres

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// outage is how long the engine may be silent before the time counts as an
// outage, in which no device could report.
const outage = 30 * time.Second

// Tick is the engine's sign of life; start marks the first one of a process.
// The time since the last tick of any replica, if it was an outage, is added to
// every open deadline before anything is allowed to expire by it.
func (d *DB) Tick(ctx context.Context, start bool) (gap time.Duration, err error) {
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO settings (name, value) VALUES ('engine_tick', jsonb_build_object('at', now(), 'since', now())) ON CONFLICT (name) DO NOTHING`); err != nil {
			return translate(err, "make the engine's tick")
		}
		var s float64
		if err := tx.GetContext(ctx, &s, `SELECT extract(epoch FROM now() - (value->>'at')::timestamptz)::float8 FROM settings WHERE name = 'engine_tick' FOR UPDATE`); err != nil {
			return translate(err, "read the engine's tick")
		}
		gap = time.Duration(s * float64(time.Second))
		if gap > outage {
			for _, q := range []string{
				`UPDATE deployment_targets SET deadline = deadline + make_interval(secs => $1) WHERE state IN ('pending', 'offered', 'accepted', 'downloading', 'installing', 'verifying')`,
				`UPDATE deployments SET deadline = deadline + make_interval(secs => $1) WHERE status IN ('pending', 'awaiting_approval', 'in_progress', 'paused')`,
				`UPDATE commands SET not_after = not_after + make_interval(secs => $1) WHERE status = 'open'`,
			} {
				if _, err := tx.ExecContext(ctx, q, s); err != nil {
					return translate(err, "move deadlines by the outage")
				}
			}
		}
		// Two replicas that tick at once are milliseconds apart in either
		// direction; only more than that is a clock that was set back.
		back := gap < -outage
		if back {
			if err := engineSetBack(ctx, tx); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `UPDATE settings SET value = jsonb_build_object('at', greatest(now(), CASE WHEN $1 THEN now() ELSE (value->>'at')::timestamptz END),
			'since', CASE WHEN $1 THEN now() ELSE (value->>'since')::timestamptz END), updated_at = now() WHERE name = 'engine_tick'`, start || gap > outage || back)
		return translate(err, "store the engine's tick")
	})
	return gap, err
}

// engineSetBack undoes what a clock that was set back leaves in the future:
// deliveries that would wait, and leases of holders who may be gone.
func engineSetBack(ctx context.Context, tx *sqlx.Tx) error {
	if _, err := tx.ExecContext(ctx, `UPDATE commands SET next_send_at = now() WHERE status = 'open' AND next_send_at < 'infinity'
		AND next_send_at > now() + make_interval(secs => $1)`, commandBackoffMax.Seconds()); err != nil {
		return translate(err, "make commands due")
	}
	_, err := tx.ExecContext(ctx, `UPDATE leases SET until = now() WHERE until > now()`)
	return translate(err, "end leases")
}

type engineClock struct {
	Now   time.Time `db:"now"`
	At    time.Time `db:"at"`
	Since time.Time `db:"since"`
}

// mayExpire reports whether deadlines count: the clock is watched, and devices
// have had the time to report since the last start or outage.
func (c engineClock) mayExpire(grace time.Duration) bool {
	return c.Now.Sub(c.At) <= outage && c.Now.Sub(c.Since) >= grace
}

func engineNow(ctx context.Context, tx *sqlx.Tx) (engineClock, error) {
	var c engineClock
	err := tx.GetContext(ctx, &c, `SELECT now() AS now, (value->>'at')::timestamptz AS at, (value->>'since')::timestamptz AS since FROM settings WHERE name = 'engine_tick'`)
	if errors.Is(err, sql.ErrNoRows) {
		err = tx.GetContext(ctx, &c, `SELECT now() AS now, now() AS at, now() AS since`)
	}
	return c, translate(err, "read the engine's clock")
}

type engineDeployment struct {
	ID        string                 `db:"id"`
	Kind      string                 `db:"kind"`
	Status    fleet.DeploymentStatus `db:"status"`
	Cancel    bool                   `db:"cancel"`
	Deadline  time.Time              `db:"deadline"`
	CreatedAt time.Time              `db:"created_at"`
}

// Step plans one open deployment that needs it and applies the plan, in one
// transaction that holds the deployment's row: one that is marked, one with a
// deadline that has passed (once grace has gone by since the last start or
// outage), or with all set any; never one in skip. It returns the deployment's
// id, "" if there was none, also with an error. A deployment whose plan changed
// something stays marked, so that the next step looks at the result.
func (d *DB) Step(ctx context.Context, grace time.Duration, all bool, skip []string, plan func(fleet.RolloutState) []fleet.Decision) (id string, changed bool, err error) {
	var others []string
	err = d.tx(ctx, func(tx *sqlx.Tx) error {
		id, changed, others = "", false, nil
		clock, err := engineNow(ctx, tx)
		if err != nil {
			return err
		}
		var p engineDeployment
		err = tx.GetContext(ctx, &p, `SELECT d.id, d.kind, d.status, d.cancel, d.deadline, d.created_at FROM deployments d
			WHERE d.status IN ('pending', 'awaiting_approval', 'in_progress', 'paused') AND d.id <> ALL($3) AND (d.dirty OR $2 OR $1 AND EXISTS (
				SELECT 1 FROM deployment_targets t WHERE t.deployment_id = d.id AND t.deadline <= now()
				AND t.state IN ('pending', 'offered', 'accepted', 'downloading', 'installing', 'verifying')))
			ORDER BY d.dirty DESC, d.created_at LIMIT 1 FOR NO KEY UPDATE OF d SKIP LOCKED`, clock.mayExpire(grace), all, pq.Array(orNone(skip)))
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return translate(err, "claim a deployment")
		}
		id = p.ID
		state, err := engineLoad(ctx, tx, p, clock, grace)
		if err != nil {
			return err
		}
		a := applier{tx: tx, deployment: p}
		for _, dec := range plan(state) {
			if err := a.apply(ctx, dec); err != nil {
				return fmt.Errorf("%s in deployment %s: %w", dec.Action, p.ID, err)
			}
		}
		others, changed = a.others, a.changed
		return a.end(ctx)
	})
	if err != nil || len(others) == 0 {
		return id, changed, err
	}
	return id, changed, d.engineMark(ctx, others)
}

// orNone keeps an empty array from being NULL, with which nothing compares.
func orNone(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

// engineMark marks deployments that a step of another one has changed or freed. It is a
// transaction of its own, because it waits for rows of other deployments; if it
// is lost, the engine's regular look at all of them finds out.
func (d *DB) engineMark(ctx context.Context, ids []string) error {
	return d.tx(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE deployments SET dirty = true WHERE id IN (SELECT id FROM deployments WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE)`, pq.Array(ids)); err != nil {
			return translate(err, "mark deployments")
		}
		return notify(ctx, tx, WorkRollout)
	})
}

func engineLoad(ctx context.Context, tx *sqlx.Tx, p engineDeployment, clock engineClock, grace time.Duration) (fleet.RolloutState, error) {
	s := fleet.RolloutState{
		ID: p.ID, Status: p.Status, Cancel: p.Cancel, Now: clock.Now, Deadline: p.Deadline,
		MayExpire: clock.mayExpire(grace), Final: map[fleet.TargetState]int{},
	}
	var counts []struct {
		State fleet.TargetState `db:"state"`
		N     int               `db:"n"`
	}
	if err := tx.SelectContext(ctx, &counts, `SELECT state, count(*) AS n FROM deployment_targets WHERE deployment_id = $1 GROUP BY state`, p.ID); err != nil {
		return s, translate(err, "count targets")
	}
	// Targets of deleted devices are gone: the rows count, not what once was.
	s.Total = 0
	open := 0
	for _, c := range counts {
		s.Total += c.N
		if c.State.Final() {
			s.Final[c.State] = c.N
		} else {
			open += c.N
		}
	}
	if err := engineTargets(ctx, tx, p, &s); err != nil {
		return s, err
	}
	if open > 0 {
		return s, nil
	}
	failures := []fleet.RolloutFailure{}
	err := tx.SelectContext(ctx, &failures, `SELECT device_id AS deviceid, state, COALESCE(NULLIF(error_message, ''), error_code) AS message FROM deployment_targets
		WHERE deployment_id = $1 AND state <> 'succeeded'
		ORDER BY state IN ('failed', 'rolled_back', 'rejected', 'timed_out') DESC, finished_at, device_id LIMIT 1`, p.ID)
	if err == nil && len(failures) == 1 {
		s.Failure = &failures[0]
	}
	return s, translate(err, "read the first failure")
}

// engineTargetLimit bounds the targets that one step looks at; every one of
// them gets its decision, so the next step sees others.
const engineTargetLimit = 2000

// engineTargets reads the targets that may need a decision: overdue ones, those
// to cancel or to offer, those of revoked devices. The rest can only be waited
// for, and of 9,000 that is nearly all.
func engineTargets(ctx context.Context, tx *sqlx.Tx, p engineDeployment, s *fleet.RolloutState) error {
	var rows []struct {
		DeviceID  string            `db:"device_id"`
		State     fleet.TargetState `db:"state"`
		Deadline  time.Time         `db:"deadline"`
		Sent      bool              `db:"sent"`
		Cancelled bool              `db:"cancelled"`
		Revoked   bool              `db:"revoked"`
	}
	offer := !p.Cancel && (p.Status == fleet.DeploymentPending || p.Status == fleet.DeploymentInProgress)
	if err := tx.SelectContext(ctx, &rows, `SELECT * FROM (
		SELECT t.device_id, t.state, t.deadline, d.status = 'revoked' AS revoked,
			$2 AND EXISTS (SELECT 1 FROM commands c WHERE c.id = t.command_id AND c.sends > 0) AS sent,
			$2 AND EXISTS (SELECT 1 FROM commands k WHERE k.device_id = t.device_id AND k.type = 'cancel' AND k.body->>'command' = t.command_id) AS cancelled
		FROM deployment_targets t JOIN devices d ON d.id = t.device_id
		WHERE t.deployment_id = $1 AND t.state IN ('pending', 'offered', 'accepted', 'downloading', 'installing', 'verifying')) o
		WHERE $2 AND NOT cancelled OR $3 AND deadline <= now() OR revoked AND state IN ('pending', 'offered')
			OR $4 AND state = 'pending' AND deadline > now() AND NOT EXISTS (SELECT 1 FROM deployment_targets w WHERE w.device_id = o.device_id
				AND w.deployment_id <> $1 AND w.state IN ('accepted', 'downloading', 'installing', 'verifying'))
		ORDER BY device_id LIMIT $5`, p.ID, p.Cancel, s.MayExpire, offer, engineTargetLimit); err != nil {
		return translate(err, "read open targets")
	}
	for _, t := range rows {
		s.Open = append(s.Open, fleet.RolloutTarget(t))
	}
	return nil
}

// end stores the counts that lists show, and whether to look again.
func (a *applier) end(ctx context.Context) error {
	var rows []struct {
		State string `db:"state"`
		N     int    `db:"n"`
	}
	if err := a.tx.SelectContext(ctx, &rows, `SELECT state, count(*) AS n FROM deployment_targets WHERE deployment_id = $1 GROUP BY state`, a.deployment.ID); err != nil {
		return translate(err, "count targets")
	}
	counts := map[string]int{}
	for _, r := range rows {
		counts[r.State] = r.N
	}
	js, err := json.Marshal(counts)
	if err != nil {
		return fmt.Errorf("encode counts: %w", err)
	}
	if _, err := a.tx.ExecContext(ctx, `UPDATE deployments SET dirty = $2, counts = $3 WHERE id = $1`, a.deployment.ID, a.changed || a.again, string(js)); err != nil {
		return translate(err, "store counts")
	}
	return a.events.write(ctx, a.tx)
}
