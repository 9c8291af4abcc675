// Package ingest takes what devices publish to Postgres: heartbeats merged and
// in batches, everything else in order per device. It never makes the broker
// wait: what does not fit into a bounded queue is dropped and counted, because
// devices repeat whatever matters until it is acknowledged.
package ingest

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"hash/fnv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// BeatStore stores presence.
type BeatStore interface {
	FlushBeats(ctx context.Context, beats []fleet.Beat, allow func(deviceID string) bool) (wantState []string, err error)
	SettleDevices(ctx context.Context, devices []string) error
	SweepOffline(ctx context.Context, allow func(deviceID string) bool) (int, error)
}

// ReportStore stores states, results and requests.
type ReportStore interface {
	ApplyState(ctx context.Context, deviceID string, s protocol.State, allow func(deviceID string) bool) (fleet.StateOutcome, error)
	ApplyResults(ctx context.Context, devices []string, results []protocol.Result) ([]*protocol.ResultAck, error)
	CommandsDue(ctx context.Context, deviceID, commandID string) error
}

// LogStore stores log lines.
type LogStore interface {
	StoreLogs(ctx context.Context, devices []string, batches []protocol.Log) error
}

// EnrollStore makes devices of keys.
type EnrollStore interface {
	Enroll(ctx context.Context, e fleet.Enrollment, receipt func(deviceID string) []byte, mayWait func() bool) (fleet.Enrolled, error)
}

// Store is what ingest writes to.
type Store interface {
	BeatStore
	ReportStore
	LogStore
	EnrollStore
}

// Publisher sends acknowledgements and replies to devices.
type Publisher interface {
	Publish(ctx context.Context, topic string, payload []byte, qos byte, retain bool) error
}

// Certifier issues client certificates, for brokers that ask devices for one.
type Certifier interface {
	// Certify returns a certificate for the stored key of an active device, and
	// that of the CA, both PEM. Any other device is fleet.CodeForbidden.
	Certify(ctx context.Context, deviceID string) (certificate, ca string, err error)
}

// Config says how to build an Ingest. Zero numbers mean the default.
type Config struct {
	Topics     protocol.Topics
	Store      Store
	Publisher  Publisher
	Certifier  Certifier             // nil: devices get no certificates
	CommandKey ed25519.PublicKey     // what devices pin
	SealKey    []byte                // 32 bytes, the same in every replica: seals challenges and receipts
	Fleet      string                // the audience of devices' tokens
	Registerer prometheus.Registerer // nil: metrics are kept but not exposed
	Log        zerolog.Logger

	Workers     int           // goroutines for states and results; 4
	QueueSize   int           // messages waiting for each of them; 4096
	MaxBeats    int           // devices whose heartbeat waits for the next flush; 200,000
	FlushEvery  time.Duration // 200 ms
	FlushRows   int           // a flush starts when so many wait, and writes so many at once; 1000
	PendingRate rate.Limit    // new devices without a claim token a second, bursts of 100; 5
	SweepEvery  time.Duration // how often silent devices are looked for; 5 s
	DampEvery   time.Duration // the span of all damping; a minute
}

// opTimeout bounds one transaction, so that a database that hangs fills queues
// and not memory.
const opTimeout = 10 * time.Second

// Ingest is the way from devices to Postgres.
type Ingest struct {
	cfg     Config
	metrics metrics
	shards  []shard
	enrolls chan message
	logged  chan message
	beats   *beats
	events  *budget // events a device may cause
	asks    *budget // times a device is asked for its state
	wishes  *budget // requests of a device
	lines   *budget // bytes of a device's log
	pending *rate.Limiter
	stopped atomic.Bool
}

type message struct {
	kind    protocol.Kind
	id      string // device id or enrolment nonce
	payload []byte
}

// A shard keeps the order of its devices' messages: one queue for presence, one
// for the rest.
type shard struct {
	beats chan message
	work  chan message
}

// Damping: what one device may cause in DampEvery.
const (
	eventsLimit = 10
	asksLimit   = 6
	wishesLimit = 30
)

// New makes an Ingest; Run makes it work.
func New(cfg Config) (*Ingest, error) {
	orInt(&cfg.Workers, 4)
	orInt(&cfg.QueueSize, 4096)
	orInt(&cfg.MaxBeats, 200_000)
	orInt(&cfg.FlushRows, 1000)
	orDuration(&cfg.FlushEvery, 200*time.Millisecond)
	orDuration(&cfg.SweepEvery, 5*time.Second)
	orDuration(&cfg.DampEvery, time.Minute)
	if cfg.PendingRate == 0 {
		cfg.PendingRate = 5
	}
	if len(cfg.CommandKey) != ed25519.PublicKeySize || len(cfg.SealKey) != sha256.Size {
		return nil, fmt.Errorf("command key of %d bytes, want %d; seal key of %d, want %d", len(cfg.CommandKey), ed25519.PublicKeySize, len(cfg.SealKey), sha256.Size)
	}
	i := &Ingest{
		cfg: cfg, metrics: newMetrics(cfg.Registerer), shards: make([]shard, cfg.Workers), enrolls: make(chan message, 1024), logged: make(chan message, 256),
		beats: newBeats(cfg.MaxBeats, cfg.FlushRows), events: newBudget(eventsLimit), asks: newBudget(asksLimit), wishes: newBudget(wishesLimit), lines: newBudget(logLimit),
		pending: rate.NewLimiter(cfg.PendingRate, 100),
	}
	for n := range i.shards {
		i.shards[n] = shard{beats: make(chan message, 2*cfg.QueueSize), work: make(chan message, cfg.QueueSize)}
	}
	return i, nil
}

func orInt(v *int, d int) {
	if *v == 0 {
		*v = d
	}
}

func orDuration(v *time.Duration, d time.Duration) {
	if *v == 0 {
		*v = d
	}
}

// Receive takes a message that a device published and owns payload from then
// on. It never blocks. The device is the one that the topic names, which the
// broker has checked; topics that are not for the orchestrator are ignored.
func (i *Ingest) Receive(topic string, payload []byte) {
	kind, id, ok := i.cfg.Topics.Parse(topic)
	if !ok {
		return
	}
	var queue chan message
	switch kind {
	case protocol.KindHeartbeat, protocol.KindPresence:
		queue = i.shard(id).beats
	case protocol.KindState, protocol.KindResult, protocol.KindRequest:
		queue = i.shard(id).work
	case protocol.KindLog:
		queue = i.logged
	case protocol.KindEnrollRequest:
		queue = i.enrolls
	default:
		return
	}
	i.metrics.messages.WithLabelValues(string(kind)).Inc()
	if i.stopped.Load() {
		i.drop(kind, "stopping")
		return
	}
	select {
	case queue <- message{kind, id, payload}:
	default:
		i.drop(kind, "queue_full")
	}
}

func (i *Ingest) shard(id string) shard {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id))
	return i.shards[h.Sum32()%uint32(len(i.shards))]
}

func (i *Ingest) drop(kind protocol.Kind, reason string) {
	i.metrics.dropped.WithLabelValues(string(kind), reason).Inc()
}

// Run works until ctx ends, then takes what is queued, flushes and returns.
func (i *Ingest) Run(ctx context.Context) error {
	var readers, writers sync.WaitGroup
	for _, s := range i.shards {
		readers.Go(func() { consume(ctx, s.beats, 1, i.presence) })
		readers.Go(func() { consume(ctx, s.work, batchLimit, i.work) })
	}
	for range 2 {
		readers.Go(func() { consume(ctx, i.enrolls, 1, i.enroll) })
	}
	readers.Go(func() { consume(ctx, i.logged, logBatch, i.logs) })
	flushing, stopFlushing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopFlushing()
	writers.Go(func() { i.flusher(flushing) })
	writers.Go(func() { i.housekeeping(ctx) })
	<-ctx.Done()
	i.stopped.Store(true)
	readers.Wait()
	stopFlushing() // the last flush has what the readers added
	writers.Wait()
	return nil
}

// consume calls f with what is queued, at most limit messages at once, until
// ctx has ended and the queue is empty.
func consume(ctx context.Context, queue chan message, limit int, f func(ctx context.Context, batch []message)) {
	work := context.WithoutCancel(ctx)
	batch := make([]message, 0, limit)
	for {
		batch = batch[:0]
		select {
		case m := <-queue:
			batch = append(batch, m)
		case <-ctx.Done():
			select {
			case m := <-queue:
				batch = append(batch, m)
			default:
				return
			}
		}
		for more := true; more && len(batch) < limit; {
			select {
			case m := <-queue:
				batch = append(batch, m)
			default:
				more = false
			}
		}
		f(work, batch)
	}
}

// housekeeping looks for silent devices and starts new damping spans.
func (i *Ingest) housekeeping(ctx context.Context) {
	sweep, span := time.NewTicker(i.cfg.SweepEvery), time.NewTicker(i.cfg.DampEvery)
	defer sweep.Stop()
	defer span.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			op, cancel := context.WithTimeout(ctx, opTimeout)
			if _, err := i.cfg.Store.SweepOffline(op, i.events.allow); err != nil && ctx.Err() == nil {
				i.cfg.Log.Error().Err(err).Msg("sweep silent devices")
			}
			cancel()
		case <-span.C:
			i.asks.roll()
			i.wishes.roll()
			i.lines.roll()
			i.settle(ctx, i.events.roll())
		}
	}
}

// settle tells what became of devices whose events were held back.
func (i *Ingest) settle(ctx context.Context, devices []string) {
	if len(devices) == 0 {
		return
	}
	op, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if err := i.cfg.Store.SettleDevices(op, devices); err != nil && ctx.Err() == nil {
		i.cfg.Log.Error().Err(err).Msg("write held back events")
	}
}
