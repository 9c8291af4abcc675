// Command kernex-orchestrator is one replica of the orchestrator: the admin API,
// rollouts, dispatch and ingest on a Postgres, an object store and an MQTT
// broker that are elsewhere. It keeps no state; any number of replicas may run.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/kernexhq/kernex/pkg/buildinfo"
	"github.com/kernexhq/kernex/pkg/config"
	"github.com/kernexhq/kernex/pkg/service"
)

const (
	name        = "kernex-orchestrator"
	description = "One replica of the orchestrator. SIGTERM ends it in order: what it received is stored, what it was doing another replica takes over."
)

func main() { os.Exit(program(os.Args[1:])) }

func program(args []string) int {
	var s settings
	command, code := config.Parse(&s, name, description, args, os.Stdout, os.Stderr)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch command {
	case "serve":
		return config.Exit(os.Stderr, name, serve(ctx, s))
	case "migrate":
		return config.Exit(os.Stderr, name, migrate(ctx, s))
	case "healthcheck":
		return config.Exit(os.Stderr, name, service.Healthcheck(ctx, s.HTTP))
	case "version":
		fmt.Println(name, buildinfo.String())
	}
	return code
}
