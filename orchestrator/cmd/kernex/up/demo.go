package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/kernexhq/kernex/pkg/child"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// demo is devices on this machine: real agents that enrol, connect and work
// like any other.
type demo struct {
	*stack
	keepers []*child.Keeper
}

// demoToken is how long the demo devices' claim token lives.
const demoToken = time.Hour

func (d *demo) start(ctx context.Context) error {
	agent, err := d.findAgent()
	if err != nil {
		return err
	}
	token, err := d.orch.CreateEnrollmentToken(ctx, fleet.NewEnrollmentToken{
		Description: "demo devices", Labels: fleet.Labels{"demo": "true"}, MaxUses: d.cmd.Demo, ExpiresAt: ptr(time.Now().Add(demoToken)), AutoApprove: true,
	})
	if err != nil {
		return fmt.Errorf("make a claim token for demo devices: %w", err)
	}
	for i := 1; i <= d.cmd.Demo; i++ {
		k, err := d.startAgent(ctx, agent, token, i)
		if err != nil {
			return errors.Join(err, d.stop(context.WithoutCancel(ctx)))
		}
		d.keepers = append(d.keepers, k)
	}
	return nil
}

func (d *demo) startAgent(ctx context.Context, agent, token string, i int) (*child.Keeper, error) {
	dir := filepath.Join(d.dir, "demo", strconv.Itoa(i))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make demo device %d's folder: %w", i, err)
	}
	return child.Keep(ctx, "demo device "+strconv.Itoa(i), d.part("demo"), func(context.Context) (*child.Process, error) {
		words, err := child.OpenLog(filepath.Join(dir, "agent.log"))
		if err != nil {
			return nil, err
		}
		defer words.Close()
		cmd := exec.Command(agent, "--state", dir, "--broker", "tcp://"+d.broker.Addr().String(),
			"--device-type", "demo", "--serial", "demo-"+strconv.Itoa(i), "--log-level", d.cmd.LogLevel)
		cmd.Env = append(os.Environ(), "KERNEX_ENROLL_TOKEN="+token) // not on the command line, where everyone sees it
		cmd.Stdout, cmd.Stderr = words.File, words.File
		return child.Start(cmd, syscall.SIGKILL)
	}, child.Step{Signal: syscall.SIGTERM, Wait: 3 * time.Second})
}

// stop ends all agents at once.
func (d *demo) stop(ctx context.Context) error {
	errs := make([]error, len(d.keepers))
	var wg sync.WaitGroup
	for i, k := range d.keepers {
		wg.Go(func() { errs[i] = k.Stop(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (d *demo) findAgent() (string, error) {
	if d.cmd.Agent != "" {
		return d.cmd.Agent, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "kernex-agent")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("kernex-agent")
	if err != nil {
		return "", fleet.Errorf(fleet.CodeInvalid, "--demo needs kernex-agent beside this program or in PATH; run make build, or give --agent FILE")
	}
	return path, nil
}

func ptr[T any](v T) *T { return &v }
