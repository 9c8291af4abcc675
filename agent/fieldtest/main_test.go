package fieldtest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/agent/run"
	"github.com/kernexhq/kernex/pkg/logging"
)

// long asks for bundles of 2 MiB.
var long = os.Getenv("KERNEX_LINK_ZOO") == "long"

const (
	agentCommand = "agent"              // the first argument of a test binary that is the agent
	ownSpace     = "KERNEX_FIELD_OWNED" // set in a process that may make network namespaces
)

// The test binary is the agent and its shim too, with times that no flag sets.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case run.ShimCommand:
			os.Exit(run.Shim(os.Args[2:]))
		case agentCommand:
			os.Exit(live(os.Args[2], os.Args[3], os.Args[4]))
		}
	}
	if os.Geteuid() != 0 && os.Getenv(ownSpace) == "" {
		os.Exit(again())
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil { // the links wait, not the processor
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// again runs the tests as root of a user namespace, which may make others.
func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), ownSpace+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// live is an agent's life.
func live(state, broker, stall string) int {
	window, err := time.ParseDuration(stall)
	if err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a, err := agent.New(agent.Config{
		State: state, Broker: broker, EnrollToken: "claim", LogLevel: "debug", Stall: window,
		Shim: []string{"/proc/self/exe", run.ShimCommand}, Log: logging.Config{Out: os.Stderr, Format: "json"},
	})
	if err == nil {
		err = a.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
