// Package run starts a bundle's programs: scripts that run to their end, and
// the one long-running program that a Supervisor keeps alive.
//
// Every program is started through the agent's own shim (see Shim), which is
// PID 1 of a new PID namespace where the agent may make one (as root): when the
// shim dies, for whatever reason, the kernel kills everything that was started
// below it, daemons that left their process group included. Without a namespace
// the shim adopts and kills what its program leaves, and a pipe tells it of the
// agent's death. Processes are counted by a pids cgroup where one can be made;
// elsewhere their number is not bounded, since RLIMIT_NPROC does not bind root.
package run
