// Package agent is the program on the device: it enrols, keeps the device
// connected, executes signed commands crash-safely and reports. This package
// only wires its sub-packages, which do not know each other.
package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/agent/fetch"
	"github.com/kernexhq/kernex/agent/install"
	"github.com/kernexhq/kernex/agent/journal"
	"github.com/kernexhq/kernex/agent/link"
	"github.com/kernexhq/kernex/agent/logs"
	"github.com/kernexhq/kernex/agent/probe"
	"github.com/kernexhq/kernex/agent/run"
	"github.com/kernexhq/kernex/agent/update"
	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/identity"
	"github.com/kernexhq/kernex/pkg/logging"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// minRate is the slowest download that is not given up, in bytes a second. A
// line of 1 KiB/s that heartbeats and other programs share brings several times
// that; below it a bundle does not arrive before its deadline.
const minRate = 1 << 7

// approvalWait is between two questions of a pending device that may not
// connect; it is how long one that may stays connected.
const approvalWait = 30 * time.Second

// Agent is one device. It holds the lock of its state directory from New until
// Run has returned.
type Agent struct {
	cfg      Config
	log      zerolog.Logger
	level    *logging.Level
	state    stateDir
	cache    *cache
	key      identity.PrivateKey
	cert     *certificate
	journal  *journal.Journal
	programs *programs
	machine  *update.Machine
	reports  *reports
	trial    *trial
	runLog   *logs.File
	shipper  *logs.Shipper
	endpoint link.Endpoint
	link     atomic.Pointer[link.Link] // nil before the first
}

// New opens the state directory, makes the device key on the first start and
// reads the journal. It connects to nothing. An error names the file or flag
// that is wrong.
func New(cfg Config) (*Agent, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if len(cfg.Shim) == 0 {
		cfg.Shim = []string{"/proc/self/exe", run.ShimCommand}
	}
	cfg.Log.Level = cfg.LogLevel
	log, level, err := logging.NewAdjustable(cfg.Log)
	if err != nil {
		return nil, err
	}
	files := cfg.Files
	if files == nil {
		files = &durable.FS{}
	}
	if cfg.Clock == nil {
		cfg.Clock = time.Now
	}
	if cfg.Retry == 0 {
		cfg.Retry = 10 * time.Second
	}
	state, err := openState(files, cfg.State)
	if err != nil {
		return nil, err
	}
	a := &Agent{cfg: cfg, log: log, level: level, state: state}
	if err := a.open(files); err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

func (a *Agent) open(files *durable.FS) (err error) {
	if a.cache, err = openCache(a.state); err != nil {
		return err
	}
	known := a.cache.get()
	if a.key, err = a.state.key(a.cfg.KeyType, known.DeviceID != ""); err != nil {
		return err
	}
	if a.cert, err = openCertificate(a.state, a.key); err != nil {
		a.log.Warn().Err(err).Msg("going on without a client certificate")
	}
	if known.DeviceID != "" {
		if err := a.level.Set(known.Config.LogLevel); err != nil {
			return err
		}
	}
	conf, err := tlsConfig(a.cfg.CA, a.now)
	if err != nil {
		return err
	}
	a.endpoint = link.Endpoint{Broker: a.cfg.Broker, EnrollBroker: a.cfg.EnrollBroker, TLS: conf, Topics: protocol.NewTopics(a.cfg.Root), Log: a.log, Clock: a.cfg.Clock}
	if a.journal, err = journal.Open(files, journal.Path(a.state.dir)); err != nil {
		return err
	}
	store, err := install.Open(files, a.state.dir, bundle.Limits{MaxBytes: a.cfg.MaxBundleBytes})
	if err != nil {
		return err
	}
	a.runLog = logs.Open(logPath(a.state.dir), logs.Size)
	a.shipper = logs.NewShipper(a.runLog, a.sendLog)
	a.reports, a.trial = newReports(a), newTrial(a)
	starter := run.NewStarter(a.cfg.Shim...)
	a.programs = &programs{
		cache: a.cache, store: store, starter: starter, privileged: a.cfg.AllowPrivileged, log: a.runLog,
		supervisor: run.NewSupervisor(starter, a.reports.wake),
	}
	a.machine, err = update.New(update.Parts{
		Journal: a.journal,
		Fetcher: &fetch.Fetcher{
			FS: files, Path: store.Archive, Client: fetch.NewClient(conf.Clone()), Log: a.log, Backoff: time.Second,
			MaxBytes: a.cfg.MaxBundleBytes, MinRate: minRate, Window: a.cfg.Stall,
		},
		Archives: store, Releases: store, Programs: a.programs,
		Errands:  errands{a},
		Trust:    trust{cache: a.cache, deviceType: a.cfg.DeviceType},
		Reporter: a.reports, Log: a.log,
	}, update.Options{Keep: a.cfg.KeepReleases, Pause: a.cfg.Retry})
	return err
}

// now is the time for checking certificates: never before this program was
// built, nor before the last signed command was. The server's time, which nobody
// signs, has no say in it.
func (a *Agent) now() time.Time {
	now := a.cfg.Clock()
	for _, floor := range []time.Time{buildTime, time.Unix(a.machine.Report().IssuedAt, 0)} {
		if now.Before(floor) {
			now = floor
		}
	}
	return now
}

func (a *Agent) close() error {
	var err error
	if a.runLog != nil {
		err = a.runLog.Close()
	}
	if a.journal != nil {
		err = errors.Join(err, a.journal.Close())
	}
	return errors.Join(err, a.state.close())
}

// DeviceID returns the id that the orchestrator has issued, "" before.
func (a *Agent) DeviceID() string { return a.cache.get().DeviceID }

// Run is the agent's life: it enrols if need be, then stays connected and
// executes commands until ctx ends, which is a clean stop with a nil error. The
// bundle's program ends with it.
func (a *Agent) Run(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var tasks sync.WaitGroup
	told := newNotifier(a.cfg.NotifySocket)
	defer func() {
		told.say("STOPPING=1")
		cancel(nil)
		tasks.Wait()
		a.programs.Stop()
		err = errors.Join(err, a.close())
	}()
	a.log.Info().Str("state", a.state.dir).Str("broker", a.cfg.Broker).Str("key", a.key.Public().Fingerprint()).
		Bool("pid_namespaces", a.programs.starter.Namespaced()).AnErr("processes_not_bounded", a.programs.starter.Bounded()).Msg("kernex-agent starts")
	told.say("READY=1")
	tasks.Go(func() { told.watchdog(ctx, a.cfg.Watchdog, a.alive) })
	tasks.Go(func() { a.shipper.Run(ctx) })
	tasks.Go(func() { a.trial.run(ctx) })
	// The release runs whether or not the network is there.
	tasks.Go(func() {
		if err := a.machine.Run(ctx); err != nil {
			cancel(err)
		}
	})
	if a.cache.get().Status != statusActive {
		if err := a.enroll(ctx); err != nil {
			if ctx.Err() != nil {
				return a.ended(ctx)
			}
			return fmt.Errorf("enrol: %w", err)
		}
	}
	for ctx.Err() == nil && a.cache.get().Status != statusActive {
		if err := a.awaitApproval(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("enrol: %w", err)
		}
	}
	tasks.Go(func() {
		select {
		case <-a.journal.Failed():
			cancel(journal.ErrBroken)
		case <-ctx.Done():
		}
	})
	if ctx.Err() == nil {
		if err := a.connect(ctx, false); err != nil {
			return err
		}
	}
	return a.ended(ctx)
}

// ended is nil after a clean stop.
func (a *Agent) ended(ctx context.Context) error {
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return cause
	}
	return nil
}

// enroll asks the orchestrator for this device's identity, until it answers.
func (a *Agent) enroll(ctx context.Context) error {
	reply, err := a.endpoint.Enroll(ctx, a.key, protocol.EnrollRequest{
		PublicKey: string(a.key.Public().PEM()), DeviceType: a.cfg.DeviceType, Serial: a.cfg.Serial,
		HardwareMetadata: probe.Hardware(), Token: a.cfg.EnrollToken, RegistrationToken: a.cache.get().RegistrationToken,
	})
	if err != nil {
		return err
	}
	if err := a.cache.enroll(a.cfg, reply); err != nil {
		return err
	}
	e := a.cache.get()
	if reply.Certificate != "" {
		if err := a.takeCertificate(reply.Certificate); err != nil {
			return err
		}
	}
	a.log.Info().Str("device", e.DeviceID).Str("fleet", e.Fleet).Str("status", e.Status).Msg("enrolled")
	return a.level.Set(e.Config.LogLevel)
}

// takeCertificate keeps what the orchestrator has issued.
func (a *Agent) takeCertificate(text string) error {
	taken, err := a.cert.take(text, a.cache.get().DeviceID)
	if taken {
		a.log.Info().Time("until", a.cert.get().Leaf.NotAfter).Msg("new client certificate")
	}
	return err
}

// recertify enrols again, which gives the same identity and a certificate.
func (a *Agent) recertify(ctx context.Context) error {
	if err := a.enroll(ctx); err != nil {
		return err
	}
	if a.cert.get() == nil {
		return fleet.Errorf(fleet.CodeUnavailable, "the orchestrator issues no certificate to this device")
	}
	return nil
}

// awaitApproval shows that a pending device is alive, for a while, and asks
// whether it was approved.
func (a *Agent) awaitApproval(ctx context.Context) error {
	pause := time.Second + rand.N(4*time.Second) //nolint:gosec // jitter
	if a.cfg.EnrollBroker != "" && a.cert.get() == nil {
		pause += approvalWait // the other listener would refuse it
	} else if err := a.connect(ctx, true); err != nil || ctx.Err() != nil {
		return err
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-timer.C:
	}
	return a.enroll(ctx)
}

// connect keeps the device connected until ctx ends; once: until the first
// restricted session has.
func (a *Agent) connect(ctx context.Context, once bool) error {
	e := a.cache.get()
	if _, err := e.commandKey(); err != nil && !once {
		return err
	}
	device := link.Device{ID: e.DeviceID, Fleet: e.Fleet, Key: a.key, Certificate: a.cert.get, Recertify: a.recertify}
	l := link.New(a.endpoint, device, &peer{a})
	l.SetHeartbeat(time.Duration(e.Config.HeartbeatIntervalS) * time.Second)
	a.link.Store(l)
	ctx, cancel := context.WithCancel(ctx)
	var reporting sync.WaitGroup
	reporting.Go(func() { a.reports.run(ctx) })
	err := l.Run(ctx, once)
	cancel()
	reporting.Wait()
	return err
}
