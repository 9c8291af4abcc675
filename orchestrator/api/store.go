package api

import (
	"context"
	"io"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Store is everything that the API reads and changes; Postgres is the one that
// exists. Each method is one transaction that also writes the audit row, and
// returns errors with a fleet code. A scope limits what the caller sees: what
// lies outside of it is not found.
type Store interface {
	TokenStore
	EnrollmentTokenStore
	ReleaseKeyStore
	DeviceStore
	CredentialStore
	DeviceRecords
	LogStore
	ConfigStore
	BundleStore
	DeploymentStore
	DeploymentMaker
	AuditStore
	EventStore
	OnceStore
}

// TokenStore keeps API tokens.
type TokenStore interface {
	Token(ctx context.Context, secret string) (fleet.APIToken, error)
	Tokens(ctx context.Context, p fleet.Page) (fleet.List[fleet.APIToken], error)
	CreateToken(ctx context.Context, n fleet.NewToken, by fleet.Actor) (t fleet.APIToken, secret string, err error)
	RevokeToken(ctx context.Context, id string, by fleet.Actor) error
}

// EnrollmentTokenStore keeps claim tokens.
type EnrollmentTokenStore interface {
	EnrollmentTokens(ctx context.Context, scope fleet.Selector, p fleet.Page) (fleet.List[fleet.EnrollmentToken], error)
	CreateEnrollmentToken(ctx context.Context, n fleet.NewEnrollmentToken, by fleet.Actor) (t fleet.EnrollmentToken, secret string, err error)
	RevokeEnrollmentToken(ctx context.Context, id string, scope fleet.Selector, by fleet.Actor) error
}

// ReleaseKeyStore keeps the public keys that sign bundles.
type ReleaseKeyStore interface {
	ReleaseKeys(ctx context.Context) (fleet.ReleaseKeys, error)
	AddReleaseKey(ctx context.Context, n fleet.NewReleaseKey, by fleet.Actor) (k fleet.ReleaseKey, created bool, err error)
	RevokeReleaseKey(ctx context.Context, id string, by fleet.Actor) error
}

// DeviceStore keeps devices.
type DeviceStore interface {
	Devices(ctx context.Context, f fleet.DeviceFilter, p fleet.Page) (fleet.List[fleet.Device], error)
	Device(ctx context.Context, id string, scope fleet.Selector) (fleet.Device, error)
	RegisterDevice(ctx context.Context, r fleet.Registration, der, hash []byte, keyType string, scope fleet.Selector, by fleet.Actor) (d fleet.Device, created bool, err error)
	UpdateDevice(ctx context.Context, id string, patch fleet.DevicePatch, scope fleet.Selector, by fleet.Actor) (fleet.Device, error)
	DeleteDevice(ctx context.Context, id string, scope fleet.Selector, by fleet.Actor) error
}

// CredentialStore decides what a device's key may do.
type CredentialStore interface {
	SetCredential(ctx context.Context, id string, from, to fleet.Credential, scope fleet.Selector, by fleet.Actor) (fleet.Device, error)
}

// DeviceRecords is what devices left behind.
type DeviceRecords interface {
	Heartbeats(ctx context.Context, id string, scope fleet.Selector, f fleet.HeartbeatFilter) ([]fleet.Heartbeat, error)
	History(ctx context.Context, id string, scope fleet.Selector, p fleet.Page) (fleet.List[fleet.HistoryEntry], error)
}

// LogStore keeps what devices logged, and makes them say more.
type LogStore interface {
	Logs(ctx context.Context, id string, scope fleet.Selector, f fleet.LogFilter, p fleet.Page) (fleet.List[fleet.LogLine], error)
	AskLogs(ctx context.Context, id string, r fleet.LogRequest, scope fleet.Selector, by fleet.Actor) (fleet.CommandRef, error)
	RestartProgram(ctx context.Context, id string, scope fleet.Selector, by fleet.Actor) (fleet.CommandRef, error)
}

// ConfigStore keeps the devices' configuration.
type ConfigStore interface {
	DeviceConfig(ctx context.Context, id string, scope fleet.Selector) (fleet.DeviceConfig, error)
	SetDeviceConfig(ctx context.Context, id string, patch fleet.ConfigPatch, ifVersion int64, scope fleet.Selector, by fleet.Actor) (fleet.DeviceConfig, error)
	SetConfigs(ctx context.Context, f fleet.DeviceFilter, patch fleet.ConfigPatch, by fleet.Actor) (fleet.ConfigChange, error)
	ConfigHistory(ctx context.Context, id string, scope fleet.Selector, p fleet.Page) (fleet.List[fleet.ConfigVersion], error)
}

// BundleStore keeps what is known of bundles; their bytes are in Objects.
type BundleStore interface {
	Bundles(ctx context.Context, name string, p fleet.Page) (fleet.List[fleet.Bundle], error)
	Bundle(ctx context.Context, id string) (fleet.Bundle, error)
	CreateBundle(ctx context.Context, b fleet.Bundle, by fleet.Actor) (stored fleet.Bundle, created bool, err error)
	DeleteBundle(ctx context.Context, id string, by fleet.Actor) (fleet.Bundle, error)
}

// DeploymentStore keeps deployments and their targets.
type DeploymentStore interface {
	Deployments(ctx context.Context, f fleet.DeploymentFilter, p fleet.Page) (fleet.List[fleet.Deployment], error)
	Deployment(ctx context.Context, id string, scope fleet.Selector) (fleet.Deployment, error)
	Targets(ctx context.Context, id string, scope fleet.Selector, state fleet.TargetState, p fleet.Page) (fleet.List[fleet.Target], error)
	CancelDeployment(ctx context.Context, id string, scope fleet.Selector, by fleet.Actor) (fleet.Deployment, error)
}

// DeploymentMaker makes deployments.
type DeploymentMaker interface {
	CreateDeployment(ctx context.Context, r fleet.DeploymentRequest, by fleet.Actor) (fleet.Deployment, error)
	PlanDeployment(ctx context.Context, r fleet.DeploymentRequest) (fleet.Plan, error)
	RollbackDevices(ctx context.Context, r fleet.RollbackRequest, by fleet.Actor) (fleet.Deployment, error)
	RollbackDeployment(ctx context.Context, id, version string, scope fleet.Selector, by fleet.Actor) (fleet.Deployment, error)
	RetryDeployment(ctx context.Context, id string, scope fleet.Selector, by fleet.Actor) (fleet.Deployment, error)
}

// AuditStore lists changes.
type AuditStore interface {
	Audit(ctx context.Context, f fleet.AuditFilter, p fleet.Page) (fleet.List[fleet.AuditEntry], error)
}

// EventStore reads numbered events.
type EventStore interface {
	EventsAfter(ctx context.Context, after int64, scope, selector fleet.Selector, limit int) (events []fleet.Event, upTo int64, err error)
	LastEvent(ctx context.Context) (int64, error)
}

// OnceStore gives the answer of a request that was done before.
type OnceStore interface {
	Replay(ctx context.Context, o fleet.Once) (status int, body []byte, found bool, err error)
}

// Objects keeps the bundles' bytes by key.
type Objects interface {
	// NewKey returns a fresh key.
	NewKey() string
	// Put stores what r gives. If r fails that is the error and nothing is stored.
	Put(ctx context.Context, key string, r io.Reader, size int64) error
	Delete(ctx context.Context, key string) error
	// Checksum reads the object and returns its SHA-256 in hex.
	Checksum(ctx context.Context, key string) (sum string, size int64, err error)
	// Presign returns a URL that anybody can GET until expires.
	Presign(ctx context.Context, key string, ttl time.Duration) (url string, expires time.Time, err error)
}
