package crashtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// program is how the agent is started at a point; it ends or it settles.
type program struct {
	env  []string
	argv []string
}

func (d *device) faulty(fault, mutation string) program {
	return program{env: []string{"KERNEX_FAULT=" + fault, "KERNEX_MUTATION=" + mutation}, argv: []string{binaries.fault()}}
}

// begin puts the device at the start of a scenario and gives the orders.
func (d *device) begin(s scenario) (outcome, error) {
	d.view.forget()
	d.output.reset()
	if err := d.restore(d.bases[s.base].killed(), nil, nil); err != nil {
		return outcome{}, err
	}
	o := outcome{command: s.order(d.view), before: s.before(d.bundles), want: s.want, code: s.code}
	o.keys, _ = os.ReadFile(filepath.Join(d.dir, "identity", "key.pem"))
	o.counters = sessionOf(d)
	return o, nil
}

// lives runs the programs one after the other, each until it ends or
// everything is done, and the last one as often as it takes. It reports how
// many ended by themselves.
func (d *device) lives(programs ...program) (ended int, err error) {
	for i := range len(programs) + 10 {
		_ = os.Remove(filepath.Join(d.dir, "state", "serving")) // of the life before
		p := programs[min(i, len(programs)-1)]
		r := d.launch(p.env, p.argv...)
		early, err := d.settle(r)
		if exit := r.stop(); early == nil && exit == nil || err != nil {
			return ended, err
		}
		ended++ // also after everything was done
	}
	return ended, errors.New("I11: the agent ends again and again")
}

var moments = regexp.MustCompile(`(?m)^moments (\d+)$`)

// moments counts the moments of a scenario that nothing disturbs.
func (d *device) moments(s scenario) (int, error) {
	o, err := d.begin(s)
	if err != nil {
		return 0, err
	}
	if ended, err := d.lives(d.faulty("", "")); ended > 0 || err != nil {
		return 0, fmt.Errorf("undisturbed it ended %d times: %w", ended, err)
	}
	if err := d.check(o); err != nil {
		return 0, err
	}
	m := moments.FindStringSubmatch(d.output.String())
	if m == nil {
		return 0, errors.New("the agent does not say how many moments there were")
	}
	return strconv.Atoi(m[1])
}

// faultPoint is one fault at moment n and up to two kills during the recovery.
// It returns how many of them happened.
func (d *device) faultPoint(s scenario, kind string, n int, mutation string, random *rand.Rand) (int, error) {
	o, err := d.begin(s)
	if err != nil {
		return 0, err
	}
	o.faulty = kind != "kill"
	programs := []program{d.faulty(fmt.Sprintf("%s:%d", kind, n), mutation)}
	for range random.IntN(maxDepth) {
		programs = append(programs, d.faulty(fmt.Sprintf("kill:%d", random.IntN(120)), mutation))
	}
	programs = append(programs, d.faulty("", mutation))
	_, err = d.lives(programs...)
	if err == nil {
		err = d.check(o)
	}
	return strings.Count(d.output.String(), "fault "+kind+" at moment") + boolInt(kind != "kill")*strings.Count(d.output.String(), "fault kill at moment"), err
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

var faultKinds = []string{"kill", "eio", "enospc"}

func TestNoFaultOfAFileCallBreaksADevice(t *testing.T) {
	t.Parallel()
	count := newCounter(t)
	share := 50
	if long {
		share = 1
	}
	count.workers(t, func(ctx context.Context, d *device, s scenario, random *rand.Rand) {
		total, err := d.moments(s)
		if err != nil {
			count.violation("fault", s.name+", undisturbed", err, d.output)
			return
		}
		for i := random.IntN(share); i < total*len(faultKinds) && ctx.Err() == nil; i += share {
			kind, n := faultKinds[i%len(faultKinds)], i/len(faultKinds)
			fired, err := d.faultPoint(s, kind, n, "", random)
			count.add("fault", fired)
			if err != nil {
				count.violation("fault", fmt.Sprintf("%s, %s at moment %d of %d", s.name, kind, n, total), err, d.output)
			}
		}
	})
}

// mutant is a machine with one rule broken, and where that shows.
type mutant struct {
	mutation string
	scenario int
	shows    string // in the violation
}

var mutants = []mutant{
	{"drop:APPLYING", 1, "I4: the deploy script succeeded 2 times"}, // the record before the deploy script
	{"late:SWITCHED", 1, "rolled_back internal"},                    // the record before the rename
}

// The test of the test: a record that is missing and an order that is swapped
// are found by killing the agent.
func TestAKillFindsAMissingRecordAndASwappedOrder(t *testing.T) {
	t.Parallel()
	for _, m := range mutants {
		t.Run(m.mutation, func(t *testing.T) {
			t.Parallel()
			found := newCounter(t)
			found.expected = true
			s := newServer(t)
			b := s.bundles(t)
			d := newDevice(t, s, b, "mutant")
			d.waits = shortPatience
			random := rand.New(rand.NewPCG(1, 1))
			sc := b.scenarios()[m.scenario]
			total, err := d.moments(sc)
			if err != nil {
				t.Fatal(err)
			}
			// The switch is in the last third of a deployment.
			for n := total * 3 / 5; n < total && found.violations == 0; n++ {
				fired, err := d.faultPoint(sc, "kill", n, m.mutation, random)
				found.add("fault", fired)
				if err != nil {
					t.Log(n, err)
				}
				if err != nil && strings.Contains(err.Error(), m.shows) {
					found.violation("fault", fmt.Sprintf("kill at moment %d of %d", n, total), err, d.output)
				}
			}
			if found.violations == 0 {
				t.Errorf("%d kills found nothing", found.points["fault"])
			}
		})
	}
}
