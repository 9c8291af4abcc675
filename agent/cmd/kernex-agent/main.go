// Command kernex-agent is the program on a device. See agent.Config for its
// flags.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/agent/run"
	"github.com/kernexhq/kernex/pkg/buildinfo"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == run.ShimCommand {
		os.Exit(run.Shim(os.Args[2:]))
	}
	var flags struct {
		agent.Config
		Version kong.VersionFlag `env:"-" help:"Show the version and exit."`
	}
	kong.Parse(&flags, kong.Name("kernex-agent"), kong.Description("Connects this device to a Kernex fleet and runs its bundles."),
		kong.DefaultEnvars("KERNEX"), kong.Vars{"version": buildinfo.String()}, kong.UsageOnError(),
		kong.Exit(func(code int) { os.Exit(min(code, 2)) })) // kong's own code for a usage error is 80
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a, err := agent.New(flags.Config)
	if err == nil {
		err = a.Run(ctx)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "kernex-agent: %v\n", err)
		os.Exit(1)
	}
}
