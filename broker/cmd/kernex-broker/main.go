// Command kernex-broker is the MQTT broker as a program of its own. It keeps no
// truth: who may log in is asked of orchestrators, who subscribe to what
// devices publish.
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
	name        = "kernex-broker"
	description = "The MQTT broker between devices and orchestrators. SIGTERM ends it in order."
)

func main() {
	var s settings
	command, code := config.Parse(&s, name, description, os.Args[1:], os.Stdout, os.Stderr)
	switch command {
	case "serve":
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code = config.Exit(os.Stderr, name, serve(ctx, s))
		stop()
	case "healthcheck":
		code = config.Exit(os.Stderr, name, service.Healthcheck(context.Background(), s.HTTP))
	case "version":
		fmt.Println(name, buildinfo.String())
	}
	os.Exit(code)
}
