package fleet

import (
	"encoding/json"
	"time"
)

// Event is something that happened, numbered in the order in which all
// consumers see it.
type Event struct {
	Number   int64           `json:"number" db:"number"`
	At       time.Time       `json:"at" db:"at"`
	Type     string          `json:"type" db:"type"`
	Subject  string          `json:"subject" db:"subject"`
	DeviceID string          `json:"device_id,omitempty" db:"device_id"`
	Data     json.RawMessage `json:"data" db:"data"`
}

// The event types. A consumer ignores those it does not know.
const (
	EventDeviceRegistered  = "kernex.device.registered"
	EventDeviceOnline      = "kernex.device.online"
	EventDeviceOffline     = "kernex.device.offline"
	EventDeviceHealth      = "kernex.device.health"
	EventDeviceRelease     = "kernex.device.release"
	EventDeviceCredential  = "kernex.device.credential"
	EventDeviceCertificate = "kernex.device.certificate"
	EventConfigChanged     = "kernex.config.changed"
	EventConfigReported    = "kernex.config.reported"
	EventBundleUploaded    = "kernex.bundle.uploaded"
	EventTrustChanged      = "kernex.trust.changed"
	EventDeploymentCreated = "kernex.deployment.created"
	EventDeploymentStatus  = "kernex.deployment.status"
	EventDeploymentTarget  = "kernex.deployment.target"
	EventLateResult        = "kernex.deployment.late_result"
)
