package crashtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// The soak's size: KERNEX_SOAK is the number of seeds of the long form,
// KERNEX_CRASH_SEED the first one.
const (
	soakSeeds = 3
	soakSteps = 40
	longSteps = 100
)

// soak is one device on which random things happen, and the model of what it
// should be.
type soak struct {
	*cutter
	past   []string                // steps, for whoever reads a failure
	orders map[string]*expectation // by command
	known  map[string]*expectation // of all commands that have a result
	config int64                   // latest version that was ordered

	row       int   // crashes since the device was last left alone
	base      *node // the world at the start of this life
	startDid  []byte
	startMark []event
}

// expectation is what a command has to end as when nothing came in between.
type expectation struct {
	ref       protocol.BundleRef
	want      fleet.TargetState
	config    int64
	disturbed bool
	gaveUp    int // 1 + the crashes in a row when it ended inconsistent
}

// step is one thing that happens while the agent runs.
func (s *soak) step() (name string, crash func(*recorder) (disk, error)) {
	b := s.bundles
	order := func(kind protocol.CommandType, ref protocol.BundleRef, want fleet.TargetState) {
		for _, e := range s.orders { // it may take another's place
			e.disturbed = true
		}
		c := s.view.order(deploy(kind, ref))
		s.orders[c.ID] = &expectation{ref: ref, want: want}
	}
	deploys := func() string {
		switch s.random.IntN(5) {
		case 0:
			order(protocol.CommandDeploy, b.old, fleet.TargetSucceeded)
			return "deploy old"
		case 1:
			order(protocol.CommandDeploy, b.sick, fleet.TargetRolledBack)
			return "deploy sick"
		case 2:
			order(protocol.CommandDeploy, b.broken, fleet.TargetRolledBack)
			return "deploy broken"
		case 3:
			order(protocol.CommandRollback, []protocol.BundleRef{b.old, b.good}[s.random.IntN(2)], fleet.TargetSucceeded)
			return "rollback"
		}
		order(protocol.CommandDeploy, b.good, fleet.TargetSucceeded)
		return "deploy good"
	}
	switch n := s.random.IntN(10); {
	case n < 4:
		name = deploys()
	case n < 5:
		name = deploys() + ", then " + deploys()
	case n < 7:
		s.config++
		c := fleet.DefaultConfig()
		c.Version, c.Metadata = s.config, map[string]any{"n": s.config}
		id := s.view.order(protocol.Command{Type: protocol.CommandConfigure, Configure: &protocol.Configure{Config: c}}).ID
		s.orders[id] = &expectation{want: fleet.TargetSucceeded, config: s.config}
		name = "configure"
	case n < 9:
		name = deploys() + " and cancel it"
		s.view.mu.Lock()
		last := s.view.commands[len(s.view.commands)-1].ID
		s.view.mu.Unlock()
		s.orders[last].disturbed = true
		s.pause()
		s.view.order(protocol.Command{Type: protocol.CommandCancel, Cancel: &protocol.Cancel{Command: last}})
	default:
		name = "nothing"
	}
	switch s.random.IntN(4) {
	case 0:
		return name + ", power cut", func(r *recorder) (disk, error) { return s.interrupted(r, false) }
	case 1:
		return name + ", kill", func(r *recorder) (disk, error) { return s.interrupted(r, true) }
	}
	return name, nil
}

// pause lets a random part of a deployment happen.
func (s *soak) pause() {
	timer := time.NewTimer(time.Duration(s.random.IntN(40)) * time.Millisecond)
	<-timer.C
}

// interrupted is the world at a random change of the disk in the life that r
// recorded: the process ended there, or the power.
func (s *soak) interrupted(r *recorder, kill bool) (disk, error) {
	at := s.random.IntN(len(r.entries) + 1)
	d := disk{tree: s.base, did: s.startDid, mark: s.startMark}
	for _, e := range r.entries[:at] {
		if err := d.tree.apply(s.dir, e); err != nil {
			return d, err
		}
		d.did, d.mark = e.did, e.mark
	}
	if kill {
		d.tree = d.tree.killed()
	} else {
		d.tree = d.tree.image(s.random)
	}
	for _, e := range s.orders {
		e.disturbed = true
	}
	return d, nil
}

// run takes steps, each a life of the agent.
func (s *soak) run(steps int) error {
	now := disk{tree: s.bases[0].killed()}
	for i := range steps {
		if err := s.restore(now.tree.killed(), now.did, now.mark); err != nil {
			return err
		}
		s.base, s.startDid, s.startMark = now.tree.killed(), now.did, now.mark
		var crash func(*recorder) (disk, error)
		r, err := s.life(func() {
			var name string
			name, crash = s.step()
			s.past = append(s.past, name)
		})
		if err == nil {
			err = s.model()
		}
		if err != nil {
			return err
		}
		if crash != nil && i < steps-1 {
			if now, err = crash(r); err != nil {
				return err
			}
			s.row++
			continue
		}
		tree, err := load(s.dir, transient)
		if err != nil {
			return err
		}
		did, _ := os.ReadFile(s.did)
		now = disk{tree: tree, did: did, mark: s.view.mark()}
		s.finished()
		s.row = 0
	}
	return nil
}

// givesUp is how many interrupted returns make a device INCONSISTENT, after
// which it refuses everything but a rollback.
const givesUp = 5

// finished forgets the commands that have their result: no crash takes it back.
func (s *soak) finished() {
	s.view.mu.Lock()
	defer s.view.mu.Unlock()
	s.view.commands = nil
	clear(s.orders)
}

// model compares the device and the server with what the commands' results, in
// the order of their arrival, make of a device.
func (s *soak) model() error {
	s.view.mu.Lock()
	want, config := "", int64(0)
	var problems []error
	broken := false
	for _, e := range s.view.events {
		if e.result == nil {
			continue
		}
		o := s.orders[e.result.Command]
		if o == nil {
			o = s.known[e.result.Command]
		}
		if o == nil {
			continue // a cancel
		}
		s.known[e.result.Command] = o
		if e.result.State == fleet.TargetSucceeded {
			want, config = orString(o.ref.Release, want), max(o.config, config)
		}
		if code(e.result) == fleet.CodeInconsistent {
			if e.result.State == fleet.TargetFailed && o.gaveUp == 0 {
				o.gaveUp = 1 + s.row
			}
			broken = broken || e.result.State == fleet.TargetFailed && o.gaveUp > givesUp
			if !broken {
				problems = append(problems, fmt.Errorf("%s ended %s %v after %d crashes in a row", e.result.Command, e.result.State, e.result.Error, s.row))
			}
			continue
		}
		if !o.disturbed && e.result.State != o.want {
			problems = append(problems, fmt.Errorf("undisturbed %s of %s ended %s %v", e.result.Command, o.ref.Version, e.result.State, e.result.Error))
		}
	}
	last := s.view.lastState()
	problems = append(problems, wrap(s.view.problems)...)
	s.view.mu.Unlock()
	if got := s.current(); got != want || last.Release != want {
		problems = append(problems, fmt.Errorf("the model is on %.8q, the device on %.8q, the server has %.8q", want, got, last.Release))
	}
	var file struct {
		Config fleet.Config `json:"config"`
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "device_config.json"))
	if err = errors.Join(err, json.Unmarshal(text, &file)); err != nil {
		problems = append(problems, err)
	}
	if config > 0 && (file.Config.Version != config || last.ConfigVersion != config) {
		problems = append(problems, fmt.Errorf("configuration %d in the model, %d on the device, %d at the server", config, file.Config.Version, last.ConfigVersion))
	}
	if left := s.left(); len(left) > 0 {
		problems = append(problems, fmt.Errorf("I7: %v are left", left))
	}
	return errors.Join(problems...)
}

func orString(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func wrap(list []string) (out []error) {
	for _, s := range list {
		out = append(out, errors.New(s))
	}
	return out
}

// The test of the test: without the journal's fsync the model does not hold.
func TestASoakFindsAMissingSync(t *testing.T) {
	t.Parallel()
	srv := newServer(t)
	b := srv.bundles(t)
	first := seed(t)
	for n := range uint64(20) {
		s := newSoak(newDevice(t, srv, b, fmt.Sprint("tampered-", n)), first+n)
		s.waits = shortPatience
		s.tamper = func(c durable.Call) bool { return c.Op == "journal" && c.Kind == durable.Sync }
		if err := s.run(soakSteps); err != nil {
			t.Logf("found after %d steps: %v", len(s.past), err)
			return
		}
	}
	t.Error("found nothing")
}

func newSoak(d *device, n uint64) *soak {
	d.view.forget()
	return &soak{cutter: &cutter{device: d, random: rand.New(rand.NewPCG(n, 0))}, orders: map[string]*expectation{}, known: map[string]*expectation{}, config: 1} //nolint:gosec // repeatable
}

func TestSoakOfRandomSteps(t *testing.T) {
	t.Parallel()
	first, seeds, steps := seed(t), soakSeeds, soakSteps
	if v := os.Getenv("KERNEX_SOAK"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatalf("KERNEX_SOAK=%q: %v", v, err)
		}
		seeds, steps = n, longSteps
	}
	begun := time.Now()
	srv := newServer(t)
	b := srv.bundles(t)
	var all sync.WaitGroup
	next := make(chan uint64)
	for range min(seeds, 4) {
		all.Go(func() {
			for n := range next {
				s := newSoak(newDevice(t, srv, b, fmt.Sprint("soak-", n)), n)
				if err := s.run(steps); err != nil {
					t.Errorf("KERNEX_CRASH_SEED=%d, step %d: %v\n%q\n%s", n, len(s.past), err, s.past, s.output)
				}
			}
		})
	}
	for i := range seeds {
		next <- first + uint64(i) //nolint:gosec // small
	}
	close(next)
	all.Wait()
	fmt.Printf("soak: %d seeds from KERNEX_CRASH_SEED=%d, %d steps each, %.0f s\n", seeds, first, steps, time.Since(begun).Seconds())
}
