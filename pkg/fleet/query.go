package fleet

import (
	"context"
	"errors"
	"time"
)

// Page asks for one page of a list: at most Limit items after Cursor, which is
// the NextCursor of the page before ("" for the first).
type Page struct {
	Limit  int
	Cursor string
}

// List is one page of a list. NextCursor is empty on the last page; Total counts
// all pages.
type List[T any] struct {
	Items      []T    `json:"items"`
	NextCursor string `json:"next_cursor"`
	Total      int    `json:"total"`
}

// DeviceFilter chooses devices. Scope is the caller's own limit; the rest is
// what was asked for, and empty fields ask for nothing.
type DeviceFilter struct {
	Scope         Selector
	Selector      Selector
	Status        string // one of Device.Status
	BundleVersion string
	Query         string // part of an id, serial, type or description
}

// DevicePatch changes what operators set on a device; nil keeps. Labels, when
// present, replaces all labels.
type DevicePatch struct {
	Labels      *Labels `json:"labels,omitempty" doc:"Replaces all labels"`
	Description *string `json:"description,omitempty"`
}

// Validate checks the bounds of what the patch sets.
func (p DevicePatch) Validate() error {
	if p.Description != nil {
		if err := Text("description", *p.Description, 1024); err != nil {
			return err
		}
	}
	if p.Labels != nil {
		return p.Labels.Validate()
	}
	return nil
}

// HeartbeatFilter chooses samples of one device, newest first. A Step above
// zero averages over it.
type HeartbeatFilter struct {
	From, To time.Time // zero is open
	Step     time.Duration
	Limit    int
}

// DeploymentFilter chooses deployments, newest first.
type DeploymentFilter struct {
	Scope  Selector
	Status DeploymentStatus
}

// DeploymentRequest asks for a deployment to Devices, or else to whatever
// Selector chooses at this moment.
type DeploymentRequest struct {
	Bundle      string
	Version     string
	Devices     []string
	Selector    *Selector // nil when Devices are named
	Scope       Selector
	Description string
	Rollout     Rollout
}

// RollbackRequest asks for a return of Devices to a version that each of them
// has run before.
type RollbackRequest struct {
	Bundle      string // empty: whichever bundle had that version on the device
	Version     string
	Devices     []string
	Scope       Selector
	Description string
}

// Plan says what a deployment would do; nothing is stored.
type Plan struct {
	Devices   int           `json:"devices" doc:"Devices that would get the bundle"`
	Waves     int           `json:"waves"`
	Bytes     int64         `json:"bytes" doc:"Bytes that devices would download in all"`
	DurationS int64         `json:"duration_s" doc:"Expected duration in seconds, from earlier deployments of the same bundle name; 0 is unknown"`
	Refused   []PlanRefusal `json:"refused" doc:"Devices that would not run it, with the reason"`
}

// PlanRefusal is one device that a deployment would not reach.
type PlanRefusal struct {
	DeviceID string `json:"device_id"`
	Code     Code   `json:"code"`
	Reason   string `json:"reason"`
}

// ConfigChange is the answer to a configuration change for many devices.
type ConfigChange struct {
	Devices int `json:"devices" doc:"Devices that the selector chose"`
	Changed int `json:"changed" doc:"Devices whose configuration got a new version"`
}

// AuditFilter chooses audit entries, newest first; empty fields choose all.
type AuditFilter struct {
	Actor   string
	Action  string
	Subject string
}

// Once names a request that must be done at most once: whose it is, the key it
// came with and the SHA-256 of what it asks for.
type Once struct {
	TokenID string
	Key     string
	Request [32]byte
}

// NewToken is an API token about to be made; who makes it gives it no more than
// they have.
type NewToken struct {
	Name      string
	Role      Role
	Selector  Selector
	ExpiresAt *time.Time
}

// Validate checks everything that needs no clock.
func (n NewToken) Validate() error {
	if n.Name == "" {
		return Errorf(CodeInvalid, "a token needs a name")
	}
	if !n.Role.Valid() {
		return Errorf(CodeInvalid, "role is %q, use viewer, operator, admin, monitor or service", n.Role)
	}
	if len(n.Selector) > 0 && (n.Role == RoleMonitor || n.Role == RoleService) {
		return Errorf(CodeInvalid, "a %s token sees the whole fleet: it cannot have a selector", n.Role)
	}
	return Text("name", n.Name, 127)
}

// NewEnrollmentToken is a claim token about to be made.
type NewEnrollmentToken struct {
	Description string
	Labels      Labels
	Serials     []string
	MaxUses     int // 0 is without a limit
	AutoApprove bool
	ExpiresAt   *time.Time
}

// MaxSerials bounds the serials that one claim token is for.
const MaxSerials = 10_000

// Validate checks everything that needs no clock.
func (n NewEnrollmentToken) Validate() error {
	if n.MaxUses < 0 || n.MaxUses > 1_000_000 {
		return Errorf(CodeInvalid, "max_uses is %d, it must be between 0 (no limit) and 1000000", n.MaxUses)
	}
	if len(n.Serials) > MaxSerials {
		return Errorf(CodeInvalid, "%d serials, at most %d are allowed", len(n.Serials), MaxSerials)
	}
	for _, s := range n.Serials {
		if s == "" {
			return Errorf(CodeInvalid, "a serial is empty")
		}
		if err := Text("serial", s, 127); err != nil {
			return err
		}
	}
	if err := Text("description", n.Description, 1024); err != nil {
		return err
	}
	return n.Labels.Validate()
}

// ErrRepeated is the cause of the error of a request whose Once has been done
// by another one meanwhile: nothing was changed, the stored answer holds.
var ErrRepeated = errors.New("the request with this key was done meanwhile")

type onceKey struct{}

// WithOnce carries o to the transaction that does the work, which stores the
// answer together with its change.
func WithOnce(ctx context.Context, o Once) context.Context {
	return context.WithValue(ctx, onceKey{}, o)
}

// OnceFrom returns what WithOnce carried, if anything.
func OnceFrom(ctx context.Context) (Once, bool) {
	o, ok := ctx.Value(onceKey{}).(Once)
	return o, ok
}
