package protocol

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// FleetDevice is what monitoring tools read of one device.
type FleetDevice struct {
	DeviceID      string `json:"device_id"`
	Online        bool   `json:"online"`
	Status        string `json:"status"`
	Health        string `json:"health"`
	BundleName    string `json:"bundle_name"`
	BundleVersion string `json:"bundle_version"`
	Deployment    string `json:"deployment,omitempty"` // the open one, if any
	At            int64  `json:"at"`                   // Unix seconds
}

// FleetDeployment is what monitoring tools read of one deployment. It is
// retained and cleared 24 h after the deployment's end.
type FleetDeployment struct {
	ID            string                    `json:"id"`
	Bundle        string                    `json:"bundle"`
	BundleVersion string                    `json:"bundle_version"`
	Status        fleet.DeploymentStatus    `json:"status"`
	Counts        map[fleet.TargetState]int `json:"counts"`
	Total         int                       `json:"total"`
	RatePerMin    float64                   `json:"rate_per_min"`    // targets ended a minute
	ETAS          int64                     `json:"eta_s,omitempty"` // seconds; 0: unknown or ended
	At            int64                     `json:"at"`
}

// FleetSummary is the fleet's totals.
type FleetSummary struct {
	Devices     int            `json:"devices"`
	Online      int            `json:"online"`
	Statuses    map[string]int `json:"statuses"`
	Versions    map[string]int `json:"versions"` // "name version" -> devices
	Deployments int            `json:"deployments"`
	At          int64          `json:"at"`
}

// CloudEvent is an event in the JSON format of CloudEvents 1.0. ID is the
// event's number: consecutive, and the same over SSE.
type CloudEvent struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Subject         string          `json:"subject"`
	Time            time.Time       `json:"time"`
	DataContentType string          `json:"datacontenttype"`
	Data            json.RawMessage `json:"data"`
}

// NewCloudEvent renders a numbered event of the fleet called name.
func NewCloudEvent(name string, e fleet.Event) CloudEvent {
	return CloudEvent{
		SpecVersion: "1.0", ID: strconv.FormatInt(e.Number, 10), Source: "kernex/" + name, Type: e.Type,
		Subject: e.Subject, Time: e.At.UTC(), DataContentType: "application/json", Data: e.Data,
	}
}
