package update

import (
	"context"
	"time"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Journal keeps values by key. Write is atomic and durable when it returns nil;
// after an error nothing of it may be believed written or unwritten until the
// agent starts again. A nil value deletes its key.
type Journal interface {
	Read(key string, v any) (found bool, err error)
	Write(values map[string]any) error
}

// Fetcher has the archive of ref on disk, whole and fsynced, when it returns
// nil. It asks renew for a fresh URL when its own is refused and calls progress
// with the bytes it holds now and then. Errors carry a fleet.Code.
type Fetcher interface {
	Fetch(ctx context.Context, ref protocol.BundleRef, maxRate int64, renew func(context.Context) (protocol.BundleRef, error), progress func(int64)) error
}

// Archives checks and unpacks downloads.
type Archives interface {
	// Verify reads the whole archive and checks it against ref.
	Verify(ctx context.Context, ref protocol.BundleRef) (*bundle.Info, error)
	// Extract verifies it again on the way into staging, fsyncs, and renames
	// staging to the release.
	Extract(ctx context.Context, ref protocol.BundleRef) (*bundle.Info, error)
	// Discard removes the archive, or what there is of it.
	Discard(ref protocol.BundleRef) error
}

// Releases are the extracted bundles and the link that names the current one.
type Releases interface {
	Current() (release string, err error)              // "" is none
	Manifest(release string) (*bundle.Manifest, error) // its own bytes checked, not its files
	Whole(release string) (*bundle.Info, error)        // every file's hash checked; fleet.CodeNotFound if absent
	Switch(release string) error                       // atomic and durable; "" is none
	Tidy(releases []string, archives []string) error   // removes all others, and staging
}

// Release is what programs run for.
type Release struct {
	ID         string
	Manifest   *bundle.Manifest
	Deployment string
	Previous   string // version before, for the environment; "" is none
}

// Outcome is how a script ended. Err carries fleet.CodeScript or CodeTimeout in
// the script's own words, or is ctx's error.
type Outcome struct {
	Err    error
	Later  bool // it asked to be called again later
	Output string
}

// Programs are a release's scripts and its long-running program.
type Programs interface {
	Deploy(ctx context.Context, r Release, limit time.Duration) Outcome
	Rollback(ctx context.Context, r Release, limit time.Duration) Outcome // the manifest has one
	Health(ctx context.Context, r Release) Outcome
	Start(r Release) error // stops what ran before; a release without run starts nothing
	Stop()
}

// Trust decides whether a bundle may be installed here: signature, device,
// trust mode.
type Trust interface {
	Admit(info *bundle.Info) error
}

// Errands are the commands that leave releases alone: restart, logs and trust.
type Errands interface {
	// Do begins what c asks for and returns at once; an error is the reason of
	// a rejection.
	Do(c protocol.Command) error
}

// Reporter tells the orchestrator.
type Reporter interface {
	Progress(r protocol.Result)     // best effort
	Request(r protocol.Request)     // best effort
	Changed()                       // a result was queued, or the state report differs
	Configure(c fleet.Config) error // apply and persist; an error is the reason of a rejection
	Now() (now time.Time, trusted bool)
	// Reached waits until the broker has answered something sent after since;
	// the error is ctx's.
	Reached(ctx context.Context, since time.Time) error
}
