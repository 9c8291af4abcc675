// Command kernex-agent is the program on a device; --help lists its flags.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/agent/run"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == run.ShimCommand {
		os.Exit(run.Shim(os.Args[2:]))
	}
	cfg, err := agent.Parse(os.Args[1:], os.Getenv, os.Stdout)
	if errors.Is(err, agent.ErrShown) {
		return
	}
	if err != nil {
		fail(2, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	a, err := agent.New(cfg)
	if err == nil {
		err = a.Run(ctx)
	}
	if err != nil {
		fail(1, err)
	}
}

func fail(code int, err error) {
	fmt.Fprintf(os.Stderr, "kernex-agent: %v\n", err)
	os.Exit(code)
}
