// Package rollout moves deployments: plan.go decides, as a pure function of a
// deployment's rows and the time, and engine.go is the loop around it.
package rollout

import (
	"fmt"
	"strings"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// OfferLimit bounds the targets that one step offers, so that no transaction
// gets long; the next step offers more.
const OfferLimit = 1000

// Plan returns what is to be done for a deployment now, in order; nothing when
// it only has to wait. Applying a plan and planning again ends: every decision
// moves a target or the deployment forward.
func Plan(s fleet.RolloutState) []fleet.Decision {
	if s.Status.Final() {
		return nil
	}
	if ended(s) == s.Total {
		return []fleet.Decision{finish(s)}
	}
	var out []fleet.Decision
	if s.Status == fleet.DeploymentPending && !s.Cancel {
		out = append(out, fleet.Decision{Action: fleet.RolloutStart})
		s.Status = fleet.DeploymentInProgress
	}
	var g groups
	for _, t := range s.Open {
		g.sort(s, t)
	}
	return g.decisions(out)
}

// groups collects targets by what becomes of them.
type groups struct {
	offer, expire, timeOut, cancel, revoked, ask []string
}

func (g *groups) sort(s fleet.RolloutState, t fleet.RolloutTarget) {
	over := s.MayExpire && !t.Deadline.After(s.Now)
	switch {
	case over && t.State.Active():
		g.timeOut = append(g.timeOut, t.DeviceID)
	case over:
		g.expire = append(g.expire, t.DeviceID)
	case t.Revoked && !t.State.Active():
		g.revoked = append(g.revoked, t.DeviceID)
	case s.Cancel && (t.State == fleet.TargetPending || t.State == fleet.TargetOffered && !t.Sent):
		g.cancel = append(g.cancel, t.DeviceID)
	case s.Cancel && !t.Cancelled:
		g.ask = append(g.ask, t.DeviceID)
	case !s.Cancel && t.State == fleet.TargetPending && s.Status == fleet.DeploymentInProgress &&
		t.Deadline.After(s.Now) && len(g.offer) < OfferLimit:
		g.offer = append(g.offer, t.DeviceID)
	}
}

func (g *groups) decisions(out []fleet.Decision) []fleet.Decision {
	end := func(devices []string, state fleet.TargetState, reason string) {
		if len(devices) > 0 {
			out = append(out, fleet.Decision{Action: fleet.RolloutEnd, Devices: devices, State: state, Reason: reason})
		}
	}
	end(g.timeOut, fleet.TargetTimedOut, "the device accepted and then gave no end in time")
	end(g.expire, fleet.TargetExpired, "the device was not reached in time")
	end(g.revoked, fleet.TargetCancelled, "the device's key was revoked")
	end(g.cancel, fleet.TargetCancelled, "cancelled before the device had it")
	if len(g.ask) > 0 {
		out = append(out, fleet.Decision{Action: fleet.RolloutAskCancel, Devices: g.ask})
	}
	if len(g.offer) > 0 {
		out = append(out, fleet.Decision{Action: fleet.RolloutOffer, Devices: g.offer})
	}
	return out
}

func ended(s fleet.RolloutState) (n int) {
	for _, k := range s.Final {
		n += k
	}
	return n
}

// finish ends a deployment whose targets have all ended.
func finish(s fleet.RolloutState) fleet.Decision {
	d := fleet.Decision{Action: fleet.RolloutFinish, Status: fleet.DeploymentFailed}
	switch {
	case s.Total > 0 && s.Final[fleet.TargetSucceeded] == s.Total:
		d.Status = fleet.DeploymentSuccess
	case s.Cancel:
		d.Status = fleet.DeploymentCancelled
	case s.Total == 0:
		d.Reason = "every device of it was deleted"
	default:
		d.Reason = reason(s)
	}
	return d
}

// reason says how many targets ended badly and, of the first of them, why in
// the device's own words.
func reason(s fleet.RolloutState) string {
	var parts []string
	for _, state := range fleet.TargetStates {
		if n := s.Final[state]; n > 0 && state != fleet.TargetSucceeded {
			parts = append(parts, fmt.Sprintf("%d of %d targets %s", n, s.Total, strings.ReplaceAll(string(state), "_", " ")))
		}
	}
	text := strings.Join(parts, ", ")
	if f := s.Failure; f != nil {
		text += ": device " + f.DeviceID
		if f.Message != "" {
			text += ": " + f.Message
		}
	}
	return text
}
