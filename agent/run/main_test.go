package run

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// The test binary is its own shim, as the agent is.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ShimCommand {
		os.Exit(Shim(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

func starter() *Starter { return NewStarter("/proc/self/exe", ShimCommand) }
