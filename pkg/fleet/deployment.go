package fleet

import "time"

// DeploymentStatus is where a deployment stands.
type DeploymentStatus string

// The statuses of a deployment; the last three are final.
const (
	DeploymentPending          DeploymentStatus = "pending"
	DeploymentAwaitingApproval DeploymentStatus = "awaiting_approval"
	DeploymentInProgress       DeploymentStatus = "in_progress"
	DeploymentPaused           DeploymentStatus = "paused"
	DeploymentSuccess          DeploymentStatus = "success"
	DeploymentFailed           DeploymentStatus = "failed"
	DeploymentCancelled        DeploymentStatus = "cancelled"
)

// Final reports whether s never changes again.
func (s DeploymentStatus) Final() bool {
	return s == DeploymentSuccess || s == DeploymentFailed || s == DeploymentCancelled
}

// CanBecome reports whether a deployment may go from s to next.
func (s DeploymentStatus) CanBecome(next DeploymentStatus) bool {
	if s.Final() || s == next {
		return false
	}
	switch next {
	case DeploymentPending, DeploymentAwaitingApproval:
		return false
	case DeploymentPaused:
		return s == DeploymentInProgress
	}
	return true
}

// Rollout says how a deployment spreads. This version offers every target at
// once.
type Rollout struct {
	TimeoutS int `json:"timeout_s,omitempty" doc:"Seconds until targets that were never reached expire; default 86400, 60-2592000"`
}

// DefaultRolloutTimeout is how long a deployment waits for devices that are
// away, in seconds: a day, so that a night without power is no failure.
const DefaultRolloutTimeout = 86400

// Validate checks the bounds; 0 means the default.
func (r Rollout) Validate() error {
	if r.TimeoutS != 0 && (r.TimeoutS < 60 || r.TimeoutS > 2592000) {
		return Errorf(CodeInvalid, "rollout.timeout_s is %d, it must be between 60 and 2592000", r.TimeoutS)
	}
	return nil
}

// Deployment is one deployment as the API shows it.
type Deployment struct {
	ID            string              `json:"id"`
	Kind          string              `json:"kind" enum:"deploy,rollback"`
	Bundle        string              `json:"bundle" doc:"Bundle name; empty when each target has its own"`
	BundleVersion string              `json:"bundle_version"`
	BundleID      string              `json:"bundle_id"`
	Description   string              `json:"description"`
	Status        DeploymentStatus    `json:"status" enum:"pending,awaiting_approval,in_progress,paused,success,failed,cancelled"`
	Reason        string              `json:"reason" doc:"Why it failed or was cancelled, in words"`
	Selector      string              `json:"selector"`
	Rollout       Rollout             `json:"rollout"`
	Progress      map[TargetState]int `json:"progress" doc:"Targets by state; states without targets are left out"`
	Total         int                 `json:"total"`
	Deadline      time.Time           `json:"deadline"`
	CreatedAt     time.Time           `json:"created_at"`
	CreatedBy     string              `json:"created_by"`
	StartedAt     *time.Time          `json:"started_at"`
	FinishedAt    *time.Time          `json:"finished_at"`
}
