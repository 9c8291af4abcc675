// Command kernex drives a fleet from a terminal: it is the client of the admin
// API, and `kernex up` runs everything on one machine.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/kernexhq/kernex/pkg/s3gw"
)

func main() {
	if s3gw.IsChild() { // the object store of kernex up
		os.Exit(s3gw.Main())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Getenv)
	stop()
	os.Exit(code)
}
