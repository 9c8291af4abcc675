package systemtest

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kernexhq/kernex/pkg/child"
)

// labEnv marks the copy of a test that runs in namespaces of its own; its value
// is the folder of the programs.
const labEnv = "KERNEX_TEST_LAB"

// longEnv asks for the long forms: outages of a minute, more kinds of them, and
// what has to be built first.
const longEnv = "KERNEX_LONG"

func long() bool { return os.Getenv(longEnv) != "" }

const (
	netnsDir = "/run/netns/"
	network  = "10.77.0."
	bridge   = "switch"
)

// inOwnNetwork runs the calling test once more, as process 1 of new network,
// mount and process namespaces, and reports whether this is that copy. The
// copy may make hosts with fixed addresses; whatever it leaves behind, processes
// and namespaces, the kernel removes with it, however it ends. That nothing is
// left that had to be removed so is checked too. env is the copy's, beside ours.
func inOwnNetwork(t *testing.T, env ...string) bool {
	t.Helper()
	if os.Getenv(labEnv) != "" {
		ip(t, "link", "set", "lo", "up")
		// Named namespaces are mounts below /run; ours are nobody else's.
		if err := unix.Mount("none", "/run", "tmpfs", 0, "mode=0755"); err != nil {
			t.Fatalf("mount a /run of our own: %v", err)
		}
		ip(t, "link", "add", bridge, "type", "bridge")
		ip(t, "addr", "add", network+"1/24", "dev", bridge)
		ip(t, "link", "set", bridge, "up")
		t.Cleanup(func() { nothingLeft(t) }) // registered first: runs last
		return true
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test puts programs on hosts of their own, for which it makes network namespaces: run it as root")
	}
	limit := 6 * time.Minute
	if long() {
		limit = 25 * time.Minute
	}
	var out bytes.Buffer
	cmd := exec.Command("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
		os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", limit.String())
	cmd.Env = append(append(os.Environ(), labEnv+"="+bin(t)), env...)
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := child.Start(cmd, syscall.SIGKILL) // ends with this process, and everything with it
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done()
	if p.Err() != nil || !bytes.Contains(out.Bytes(), []byte("--- PASS: "+t.Name())) {
		t.Fatalf("in its own network the test failed: %v\n%s", p.Err(), out.Bytes())
	}
	if _, err := os.Stat(netnsDir + "db"); err == nil {
		t.Error("a network namespace of the test is visible outside of it")
	}
	t.Logf("%s", out.Bytes())
	return false
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// nothingLeft fails the test if a process is left in its namespace a few seconds
// after everything was stopped.
func nothingLeft(t *testing.T) {
	t.Helper()
	limit := time.NewTimer(5 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		left := processes(t)
		if len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-limit.C:
			t.Errorf("%d processes are left: %s", len(left), strings.Join(left, "; "))
			return
		}
	}
}

// processes lists the command lines of every process in this namespace but our
// own. Those that ended and that nobody reaped do not count: nobody is init here.
func processes(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range dirs {
		line, err := os.ReadFile(d + "/cmdline")
		if err == nil && len(line) > 0 && d != "/proc/1" { // a zombie has no command line
			out = append(out, filepath.Base(d)+" "+string(bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte(" "))))
		}
	}
	return out
}

// host is a network namespace with an address of its own, plugged into a switch
// that the test is plugged in too.
type host struct {
	t    *testing.T
	name string
	addr string
}

func newHost(t *testing.T, name, number string) *host {
	t.Helper()
	h := &host{t: t, name: name, addr: network + number}
	ip(t, "netns", "add", name)
	ip(t, "link", "add", h.port(), "type", "veth", "peer", "name", "eth0", "netns", name)
	ip(t, "link", "set", h.port(), "master", bridge, "up")
	ip(t, "-n", name, "link", "set", "lo", "up")
	ip(t, "-n", name, "addr", "add", h.addr+"/24", "dev", "eth0")
	ip(t, "-n", name, "link", "set", "eth0", "up")
	t.Cleanup(func() { ip(t, "netns", "del", name) })
	return h
}

// port is the host's port of the switch.
func (h *host) port() string { return "v-" + h.name }

// unplug pulls the host's cable: no side is told.
func (h *host) unplug() { ip(h.t, "link", "set", h.port(), "down") }

// plug puts it back in.
func (h *host) plug() { ip(h.t, "link", "set", h.port(), "up") }

// slow limits what the host gets to rate bits a second, such as 8mbit.
func (h *host) slow(rate string) {
	h.t.Helper()
	if out, err := exec.Command("tc", "qdisc", "replace", "dev", h.port(), "root", "tbf", "rate", rate, "burst", "32kb", "latency", "400ms").CombinedOutput(); err != nil {
		h.t.Fatalf("limit the rate of %s: %v: %s", h.name, err, out)
	}
}

// command is a program that will run on the host.
func (h *host) command(program string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + netnsDir + h.name, "--", program}, args...)...)
}

// client reaches what listens on the host's own loopback.
func (h *host) client() *http.Client {
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, netw, addr string) (net.Conn, error) {
		// A socket belongs to the network of the thread that makes it.
		runtime.LockOSThread()
		own, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return nil, err
		}
		defer own.Close()
		theirs, err := os.Open(netnsDir + h.name)
		if err != nil {
			return nil, err
		}
		defer theirs.Close()
		if err := unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNET); err != nil {
			return nil, err
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, netw, addr)
		if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil {
			return nil, back // the thread stays locked and ends with this goroutine
		}
		runtime.UnlockOSThread()
		return conn, err
	}}
	return &http.Client{Transport: t, Timeout: 10 * time.Second}
}
