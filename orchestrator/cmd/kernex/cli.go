package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/kernexhq/kernex/orchestrator/cmd/kernex/up"
)

// The exit codes of every command.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// cli is the grammar: one field a command, in the order that help shows.
type cli struct {
	Globals globals `embed:""`

	Up          up.Cmd         `cmd:"" help:"Run everything on this machine: database, object store, broker, orchestrator."`
	Device      deviceCmd      `cmd:"" help:"Devices: list, label, configure, approve, revoke."`
	Bundle      bundleCmd      `cmd:"" help:"Bundles: make, check, upload, list."`
	Deploy      deployCmd      `cmd:"" help:"Deploy a bundle and watch until every device has ended."`
	Rollback    rollbackCmd    `cmd:"" help:"Take devices back to a version that each has run before."`
	Deployment  deploymentCmd  `cmd:"" help:"Deployments: list, watch, cancel, retry, roll back."`
	EnrollToken enrollTokenCmd `cmd:"" help:"Claim tokens with which new devices enrol."`
	Token       tokenCmd       `cmd:"" help:"API tokens of people, programs and monitors."`
	ReleaseKey  releaseKeyCmd  `cmd:"" help:"Keys that sign bundles: add, list, revoke."`
	Audit       auditCmd       `cmd:"" help:"Who changed what, when and from where."`
	Watch       watchCmd       `cmd:"" help:"Print what happens in the fleet, live."`
	Version     versionCmd     `cmd:"" help:"Print the version of this program."`
}

// usageError is a command line that cannot mean anything: exit code 2.
type usageError string

func (e usageError) Error() string { return string(e) }

func usagef(format string, args ...any) error { return usageError(fmt.Sprintf(format, args...)) }

// run is the whole program: it parses args, does one command and returns the
// exit code. env looks up an environment variable; ctx ends at Ctrl-C.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, env func(string) string) int {
	var (
		c      cli
		exited = -1
		a      = &app{stdout: stdout, stderr: stderr, env: env, now: time.Now, flags: &c.Globals}
	)
	parser, err := kong.New(&c, kong.Name("kernex"),
		kong.Description("Kernex deploys software to devices and takes it back when it does not work."),
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.Bind(a), kong.BindTo(ctx, (*context.Context)(nil)), kong.BindTo(stdout, (*io.Writer)(nil)))
	if err != nil {
		a.complain(err)
		return exitFailed
	}
	bare := len(args) == 0
	if bare {
		args = []string{"--help"}
	}
	k, err := parser.Parse(args)
	switch {
	case bare:
		return exitUsage
	case exited >= 0: // --help has printed
		return exited
	case err != nil:
		a.complain(usageError(err.Error() + helpHint(err)))
		return exitUsage
	}
	return a.exitCode(k.Run())
}

// helpHint names the help of the command that was tried.
func helpHint(err error) string {
	var parse *kong.ParseError
	name := "kernex"
	if errors.As(err, &parse) && parse.Context != nil {
		if cmd := parse.Context.Selected(); cmd != nil {
			name = cmd.FullPath()
		} else if cmd := strings.Fields(parse.Context.Command()); len(cmd) > 0 {
			name += " " + cmd[0]
		}
	}
	return fmt.Sprintf(" (see %s --help)", name)
}

// exitCode reports err and maps it.
func (a *app) exitCode(err error) int {
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage):
		a.complain(err)
		return exitUsage
	case errors.Is(err, errReported):
		return exitFailed
	}
	a.complain(err)
	return exitFailed
}
