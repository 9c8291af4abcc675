package run

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// The test binary is its own shim, as the agent is, and an agent to be killed.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ShimCommand {
		os.Exit(Shim(os.Args[2:]))
	}
	if len(os.Args) > 4 && os.Args[1] == agentDouble {
		os.Exit(doubleMain(os.Args[2:]))
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if dirs := leftGroups(starter().looked()); len(dirs) > 0 {
			fmt.Printf("cgroups are left: %q\n", dirs)
			code = 1
		}
		os.Exit(code)
	}))
}

func starter() *Starter { return NewStarter("/proc/self/exe", ShimCommand) }

// looked is s when it has found out what it may do.
func (s *Starter) looked() *Starter { s.look(); return s }
