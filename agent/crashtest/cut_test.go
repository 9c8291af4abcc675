package crashtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/kernexhq/kernex/agent/journal"
	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// maxDepth is how often recovery itself is interrupted (I9).
const maxDepth = 3

// cutter cuts one device's power.
type cutter struct {
	*device
	scenario scenario
	command  protocol.Command
	random   *rand.Rand
	tamper   func(durable.Call) bool // these syncs do not happen
}

// life runs the agent on what is on the disk until everything is done, and
// returns what it did to the disk, entry by entry.
func (c *cutter) life(order func()) (*recorder, error) {
	r := &recorder{seen: func(e *entry) {
		e.did, _ = os.ReadFile(c.did)
		e.mark = c.view.mark()
		e.tampered = c.tamper != nil && c.tamper(e.Call)
	}}
	c.output.reset()
	p := c.start(&durable.FS{Hook: r.hook})
	if order != nil {
		order()
	}
	early, err := c.settle(p)
	_ = p.stop() // in this process it cannot be killed
	switch {
	case err != nil:
		return r, err
	case early != nil:
		return r, fmt.Errorf("I6: %w", early)
	case len(r.entries) > maxChanges:
		return r, fmt.Errorf("I11: %d changes of the disk", len(r.entries))
	}
	return r, nil
}

// disk is where a cut happens: the model at some entry, and what the world knew.
type disk struct {
	tree *node
	did  []byte
	mark []event
}

// calm runs the scenario without a cut and returns the disk before it and what
// was done.
func (c *cutter) calm() (disk, *recorder, error) {
	c.view.forget()
	tree := c.bases[c.scenario.base].killed()
	if err := c.restore(tree, nil, nil); err != nil {
		return disk{}, nil, err
	}
	r, err := c.life(func() { c.command = c.scenario.order(c.view) })
	if err != nil {
		return disk{}, r, err
	}
	o := c.outcome()
	if err := c.check(o); err != nil {
		return disk{}, r, err
	}
	if got := c.view.final(c.command.ID); got.State != c.scenario.want || code(got) != c.scenario.code {
		return disk{}, r, fmt.Errorf("undisturbed it is %s %s", got.State, code(got))
	}
	return disk{tree: c.bases[c.scenario.base].killed()}, r, c.complete(r)
}

func (c *cutter) outcome() outcome {
	return outcome{command: c.command, before: c.scenario.before(c.bundles), want: c.scenario.want, code: c.scenario.code}
}

// complete checks that the model knows everything that is on the disk.
func (c *cutter) complete(r *recorder) error {
	model := c.bases[c.scenario.base].killed()
	for _, e := range r.entries {
		if err := model.apply(c.dir, e); err != nil {
			return err
		}
	}
	real, err := load(c.dir, transient)
	if err != nil {
		return err
	}
	return model.same("", real)
}

// point cuts the power at d, with the part of what was not synced that random
// chooses, starts the agent and checks. It returns how often it cut: while the
// agent recovers the power goes again, depth times.
func (c *cutter) point(d disk, random *rand.Rand, depth int) (int, error) {
	tree := d.tree.image(random)
	if err := c.restore(tree.killed(), d.did, d.mark); err != nil {
		return 0, err
	}
	o := c.outcome()
	o.keys, _ = os.ReadFile(filepath.Join(c.dir, "identity", "key.pem"))
	o.counters = sessionOf(c.device)
	r, err := c.life(nil)
	if err == nil {
		err = c.check(o)
	}
	if err != nil || depth <= 1 || len(r.entries) == 0 {
		return 1, err
	}
	next := disk{tree: tree, did: d.did, mark: d.mark}
	at := c.random.IntN(len(r.entries))
	for _, e := range r.entries[:at] {
		if err := next.tree.apply(c.dir, e); err != nil {
			return 1, err
		}
		next.did, next.mark = e.did, e.mark
	}
	n, err := c.point(next, c.random, depth-1)
	if err != nil {
		err = fmt.Errorf("and again after change %d of the recovery: %w", at, err)
	}
	return n + 1, err
}

// sessionOf reads the session counter that the disk has, 0 if none.
func sessionOf(d *device) (session int64) {
	text, err := os.ReadFile(journal.Path(d.dir))
	if err != nil {
		return 0
	}
	copied := filepath.Join(d.root, "journal-before")
	if os.WriteFile(copied, text, 0o600) != nil {
		return 0
	}
	j, err := journal.Open(&durable.FS{}, copied)
	if err != nil {
		return 0 // the agent's own start will say so
	}
	defer func() { _ = j.Close() }()
	_, _ = j.Read("session", &session)
	return session
}

// sweep visits the prefixes of a scenario that chosen names. subsets is how many
// random subsets there are besides what was synced.
func (c *cutter) sweep(ctx context.Context, count *counter, subsets int, chosen func(at, of int) bool) {
	start, r, err := c.calm()
	if err != nil {
		count.t.Errorf("%s, undisturbed: %v\n%s", c.scenario.name, err, c.output) // also where violations are expected
		return
	}
	for at := 0; at <= len(r.entries) && ctx.Err() == nil; at++ {
		where := "before anything"
		if at > 0 {
			e := r.entries[at-1]
			if err := start.tree.apply(c.dir, e); err != nil {
				count.violation("cut", c.scenario.name, err, c.output)
				return
			}
			start.did, start.mark = e.did, e.mark
			where = fmt.Sprintf("change %d of %d, %s %s %s", at, len(r.entries), e.Op, e.Kind, filepath.Base(e.Path))
		}
		if !chosen(at, len(r.entries)+1) {
			continue
		}
		for subset := range 1 + subsets {
			random := c.random
			if subset == 0 {
				random = nil
			}
			n, err := c.point(start, random, 1+c.random.IntN(maxDepth))
			count.add("cut", n)
			if err != nil {
				count.violation("cut", fmt.Sprintf("%s, after %s, subset %d", c.scenario.name, where, subset), err, c.output)
			}
		}
	}
}

func TestNoPowerCutBreaksADevice(t *testing.T) {
	t.Parallel()
	count := newCounter(t)
	subsets, share := 0, 8
	if long {
		subsets, share = 3, 1
	}
	// Every share-th prefix, another one in each run.
	count.workers(t, func(ctx context.Context, d *device, s scenario, random *rand.Rand) {
		c := &cutter{device: d, scenario: s, random: random}
		shift := random.IntN(share)
		c.sweep(ctx, count, subsets, func(at, _ int) bool { return at%share == shift })
	})
}

// The test of the test: a sync that does not happen is found.
func TestAPowerCutFindsAMissingSync(t *testing.T) {
	t.Parallel()
	for name, tamper := range map[string]func(durable.Call) bool{
		"journal record":       func(c durable.Call) bool { return c.Op == "journal" && c.Kind == durable.Sync },
		"configuration":        func(c durable.Call) bool { return c.Op == "device-config" && c.Kind == durable.Sync },
		"key":                  func(c durable.Call) bool { return c.Op == "identity" && c.Kind == durable.Sync },
		"files of the release": func(c durable.Call) bool { return c.Op == "extract" && c.Kind == durable.Sync },
		"its directories":      func(c durable.Call) bool { return c.Op == "extract" && c.Kind == durable.SyncDir },
		"its name":             func(c durable.Call) bool { return c.Op == "extract-publish" && c.Kind == durable.SyncDir },
		"current":              func(c durable.Call) bool { return c.Op == "switch" && c.Kind == durable.SyncDir },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			b := s.bundles(t)
			found := newCounter(t)
			found.expected = true
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			found.found = cancel
			random := rand.New(rand.NewPCG(1, 1))
			d := newDevice(t, s, b, "tampered")
			d.waits = shortPatience
			for _, sc := range b.scenarios()[:2] {
				c := &cutter{device: d, scenario: sc, random: random, tamper: tamper}
				c.sweep(ctx, found, 0, func(at, of int) bool { return at%4 == 3 || at == of-1 })
			}
			if found.violations == 0 {
				t.Errorf("%d cuts found nothing", found.points["cut"])
			}
		})
	}
}
