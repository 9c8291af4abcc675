package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/kernexhq/kernex/agent/install"
	"github.com/kernexhq/kernex/agent/probe"
	"github.com/kernexhq/kernex/agent/run"
	"github.com/kernexhq/kernex/agent/update"
	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// settle is how long the program of a release without a health check has to
// survive before the release counts as healthy.
const settle = 2 * time.Second

// programs runs a release's scripts and its program with the environment that
// the bundle format promises.
type programs struct {
	cache      *cache
	store      *install.Store
	starter    *run.Starter
	supervisor *run.Supervisor
	privileged bool    // the device's policy
	log        run.Log // of the long-running program
}

func (p *programs) program(r update.Release, args ...string) run.Program {
	return run.Program{
		Args: args, Dir: p.store.Release(r.ID), Env: p.env(r),
		Privileged: p.privileged && r.Manifest.Privileged,
	}
}

// env is the whole environment but PATH.
func (p *programs) env(r update.Release) []string {
	e := p.cache.get()
	env := []string{
		"KERNEX_DEVICE_ID=" + e.DeviceID,
		"KERNEX_DEPLOYMENT_ID=" + r.Deployment,
		"KERNEX_BUNDLE_NAME=" + r.Manifest.Name,
		"KERNEX_VERSION=" + r.Manifest.Version,
		"KERNEX_PREVIOUS_VERSION=" + r.Previous,
		"KERNEX_RELEASE_DIR=" + p.store.Release(r.ID),
		"KERNEX_STATE_DIR=" + p.store.State(),
	}
	for _, key := range r.Manifest.ConfigKeys {
		v, ok := e.Config.Metadata[key]
		if !ok {
			continue
		}
		text, isText := v.(string)
		if !isText {
			raw, err := json.Marshal(v)
			if err != nil {
				continue // it came as JSON
			}
			text = string(raw)
		}
		env = append(env, "KERNEX_CONFIG_"+envName(key)+"="+text)
	}
	return env
}

// envName makes a metadata key a name for the environment.
func envName(key string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
}

func (p *programs) script(ctx context.Context, r update.Release, path string, limit time.Duration) update.Outcome {
	o := p.starter.Script(ctx, p.program(r, "./"+path), limit)
	out := update.Outcome{Output: o.Output, Later: o.Code == run.ExitTryLater}
	switch {
	case o.TimedOut:
		out.Err = fleet.Errorf(fleet.CodeTimeout, "%s%s", o.Reason, lastLine(o.Output))
	case o.Reason != "":
		out.Err = fleet.Errorf(fleet.CodeScript, "%s%s", o.Reason, lastLine(o.Output))
	}
	return out
}

// lastLine is what a script said last, to stand behind its exit status.
func lastLine(output string) string {
	output = strings.TrimSpace(output)
	if output == "" {
		return ""
	}
	line := output[strings.LastIndexByte(output, '\n')+1:]
	return ": " + strings.ToValidUTF8(line[:min(len(line), 200)], "")
}

// Deploy implements update.Programs.
func (p *programs) Deploy(ctx context.Context, r update.Release, limit time.Duration) update.Outcome {
	before, err := sealRelease(p.store.Release(r.ID), r.ID, r.Manifest.Files)
	if err != nil {
		return update.Outcome{Err: err}
	}
	out := p.script(ctx, r, r.Manifest.Deploy.Script, limit)
	if out.Err == nil {
		if err := before.check(); err != nil {
			out.Err = fleet.Errorf(fleet.ErrorCode(err), "%s: %s", r.Manifest.Deploy.Script, fleet.ErrorMessage(err))
		}
	}
	return out
}

// Rollback implements update.Programs.
func (p *programs) Rollback(ctx context.Context, r update.Release, limit time.Duration) update.Outcome {
	return p.script(ctx, r, r.Manifest.Rollback.Script, limit)
}

// Start implements update.Programs.
func (p *programs) Start(r update.Release) error {
	p.supervisor.Stop()
	if r.Manifest.Run == nil {
		return nil
	}
	program := p.program(r, r.Manifest.Run.Command...)
	for k, v := range r.Manifest.Run.Env {
		program.Env = append(program.Env, k+"="+v)
	}
	return p.supervisor.Start(run.Service{Program: program, Policy: *r.Manifest.Run, Log: p.log})
}

// Stop implements update.Programs.
func (p *programs) Stop() { p.supervisor.Stop() }

// Health implements update.Programs.
func (p *programs) Health(ctx context.Context, r update.Release) update.Outcome {
	if r.Manifest.Health == nil {
		return p.alive(ctx, r)
	}
	check := probe.Check{
		Health: *r.Manifest.Health,
		Gone:   func() string { return p.gone(r) },
		Script: func(ctx context.Context, limit time.Duration) (string, string) {
			o := p.starter.Script(ctx, p.program(r, "./"+r.Manifest.Health.Script), limit)
			if o.Reason == "" {
				return "", o.Output
			}
			return o.Reason + lastLine(o.Output), o.Output
		},
	}
	v := check.Run(ctx)
	out := update.Outcome{Err: v.Err, Output: v.Output}
	if st := p.supervisor.Status(); v.Err != nil && st.Output != "" {
		out.Output = strings.TrimSpace(out.Output) + "\n" + st.Output
	}
	return out
}

// alive is the health of a release that has no check.
func (p *programs) alive(ctx context.Context, r update.Release) update.Outcome {
	if r.Manifest.Run == nil {
		return update.Outcome{}
	}
	timer := time.NewTimer(settle)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return update.Outcome{Err: ctx.Err()}
	case <-timer.C:
	}
	st := p.supervisor.Status()
	if reason := p.gone(r); reason != "" || st.Wanted && !st.Running {
		return update.Outcome{Err: fleet.Errorf(fleet.CodeHealth, "the program does not stay up: %s", st.Reason), Output: st.Output}
	}
	return update.Outcome{}
}

// gone says why the program will not run again by itself.
func (p *programs) gone(r update.Release) string {
	st := p.supervisor.Status()
	switch {
	case r.Manifest.Run == nil || st.Running:
		return ""
	case st.GaveUp:
		return st.Reason
	case !st.Wanted && r.Manifest.Run.Restart == bundle.RestartAlways:
		return fmt.Sprintf("%s is not running", strings.Join(r.Manifest.Run.Command, " "))
	}
	return ""
}

// logPath is the long-running program's log in a state directory.
func logPath(dir string) string { return filepath.Join(dir, "log", "run.log") }
