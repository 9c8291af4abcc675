package run

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ShimCommand is the first argument that makes the agent's binary a shim.
const ShimCommand = "shim"

// Limits of every program of a bundle.
const (
	maxOpenFiles = 1024
	maxFileSize  = 1 << 30
)

// shimFailed is the shim's own exit status when it cannot start the program:
// what a shell answers for a command that is not found.
const shimFailed = 127

// noGroup stands for a shim that stays in the agent's cgroup.
const noGroup = "-"

// lifeline is the descriptor that ends when the agent does, or when it wants
// the program to.
const lifeline = 3

// Shim is the whole process between the agent and a bundle's program. args are
// "0" or "1" (whether the program may gain privileges), the cgroup.procs file of
// the cgroup to enter or "-", and the program with its arguments; descriptor 3
// is a pipe from the agent. It limits itself, starts the program, forwards
// signals, reaps whatever is left to it and returns the program's exit status,
// 128 + n after signal n. As PID 1 of a namespace its own end ends everything in
// it; elsewhere it kills its descendants itself.
func Shim(args []string) int {
	if len(args) < 3 {
		fmt.Fprintln(os.Stderr, "shim: needs 0 or 1, a cgroup and a program; only the agent starts it")
		return shimFailed
	}
	syscall.CloseOnExec(lifeline)
	// no_new_privs and the parent-death signal belong to the thread that forks.
	runtime.LockOSThread()
	if args[1] != noGroup {
		if err := writeKnob(args[1], "0"); err != nil {
			fmt.Fprintf(os.Stderr, "shim: enter the cgroup: %v\n", err)
			return shimFailed
		}
	}
	privileged, args := args[0] == "1", args[2:]
	if err := confine(privileged); err != nil {
		fmt.Fprintf(os.Stderr, "shim: %v\n", err)
		return shimFailed
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2)
	path, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", args[0], errors.Unwrap(err))
		return shimFailed
	}
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", args[0], err)
		return shimFailed
	}
	go untilTheAgentEnds(pid)
	go func() {
		for s := range signals {
			_ = syscall.Kill(pid, s.(syscall.Signal)) // it may just have ended
		}
	}()
	code := reap(pid)
	if os.Getpid() != 1 {
		killChildren()
	}
	return code
}

// untilTheAgentEnds waits for the pipe's end, which no death of the agent can
// keep from coming, and then ends the program.
func untilTheAgentEnds(pid int) {
	var b [1]byte
	for {
		if _, err := syscall.Read(lifeline, b[:]); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if os.Getpid() == 1 {
		os.Exit(128 + int(syscall.SIGKILL)) // and the kernel kills the rest
	}
	_ = syscall.Kill(pid, syscall.SIGKILL) // Shim kills the rest when it has reaped it
}

// confine sets what the program inherits.
func confine(privileged bool) error {
	for _, l := range []struct {
		name     string
		resource int
		value    uint64
	}{
		{"open files", syscall.RLIMIT_NOFILE, maxOpenFiles},
		{"file size", syscall.RLIMIT_FSIZE, maxFileSize},
		{"core size", syscall.RLIMIT_CORE, 0},
	} {
		var now syscall.Rlimit
		if err := syscall.Getrlimit(l.resource, &now); err != nil {
			return fmt.Errorf("read the limit of %s: %w", l.name, err)
		}
		value := min(l.value, now.Max) // nobody may raise a hard limit
		if err := syscall.Setrlimit(l.resource, &syscall.Rlimit{Cur: value, Max: value}); err != nil {
			return fmt.Errorf("limit %s: %w", l.name, err)
		}
	}
	if !privileged {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("give up new privileges: %w", err)
		}
	}
	syscall.Umask(0o077)
	if os.Getpid() != 1 { // PID 1 gets every orphan anyway
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("adopt orphans: %w", err)
		}
	}
	return nil
}

// reap waits for every child until pid is among them: orphans of the program
// become the children of PID 1.
func reap(pid int) int {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "shim: wait for process "+strconv.Itoa(pid)+": "+err.Error())
			return shimFailed
		case got != pid:
		case status.Signaled():
			return 128 + int(status.Signal())
		case status.Exited():
			return status.ExitStatus()
		}
	}
}

// killChildren kills what the program left behind where no namespace does it:
// as a subreaper the shim inherits each orphan, until none is left.
func killChildren() {
	for {
		lists, _ := filepath.Glob("/proc/self/task/*/children")
		for _, list := range lists {
			pids, _ := os.ReadFile(list) // a thread may just have ended
			for _, pid := range strings.Fields(string(pids)) {
				if n, err := strconv.Atoi(pid); err == nil {
					_ = syscall.Kill(n, syscall.SIGKILL)
				}
			}
		}
		if _, err := syscall.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, syscall.EINTR) {
			return // ECHILD: all are gone
		}
	}
}
