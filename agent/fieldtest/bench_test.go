package fieldtest

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/agent/fetch"
	"github.com/kernexhq/kernex/pkg/durable"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/pkg/testkit"
)

// The goals of docs/numbers.md.
const (
	goalBinary   = 9.0  // MB, for ARM v6
	goalRSS      = 12.0 // MiB
	goalCPU      = 0.05 // percent of one core, at a heartbeat a minute
	goalMQTT     = 20.0 // KB a day, at a heartbeat each 10 minutes
	goalDownload = 200.0
)

// What is extrapolated from: heartbeats each second for that long, and silence
// on a connection with pings each 30 s, the shortest keepalive there is.
const (
	beating = 40 * time.Second
	silence = 100 * time.Second
)

// BenchmarkAgent prints what the agent needs beside the goals. It takes about
// three minutes and runs once, whatever -benchtime says.
func BenchmarkAgent(b *testing.B) {
	if b.N > 1 {
		return
	}
	report := func(what string, value float64, unit string, goal float64, atMost bool, how string) {
		sign, met := "<=", value <= goal
		if !atMost {
			sign, met = ">=", value >= goal
		}
		verdict := "met"
		if !met {
			verdict = "MISSED"
		}
		fmt.Printf("%-34s %10.3g %-5s goal %s %-5.4g %-7s %s\n", what, value, unit, sign, goal, verdict, how)
	}
	arm, native := build(b, "GOARCH=arm", "GOARM=6"), build(b)
	report("binary, stripped, ARM v6", megabytes(b, arm), "MB", goalBinary, true, fmt.Sprintf("this machine's is %.2f MB", megabytes(b, native)))
	l := start(b, native)
	rss, anonymous := l.memory(b)
	report("memory when idle", rss, "MiB", goalRSS, true, fmt.Sprintf("RSS, of it %.1f anonymous", anonymous))
	n := l.measure(b)
	report("CPU at a heartbeat a minute", n.cpu, "%", goalCPU, true,
		fmt.Sprintf("extrapolated: %.3f ms a heartbeat (%d, one a second), %.4f %% between", n.beatCPU.Seconds()*1000, n.beats, n.idleCPU))
	report("MQTT bytes a device-day", n.day/1000, "KB", goalMQTT, true,
		fmt.Sprintf("extrapolated: one connection %d B, 144 heartbeats of %.1f B, 360 pings of %.1f B", n.connect, n.beatBytes, n.pingBytes))
	report("download, loopback, hashing", download(b, "/dev/shm"), "MB/s", goalDownload, false,
		fmt.Sprintf("256 MiB in parts over HTTP into memory; onto this machine's disk, fsynced: %.0f MB/s", download(b, b.TempDir())))
}

// build makes the agent as it is released.
func build(b *testing.B, env ...string) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "kernex-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/kernexhq/kernex/agent/cmd/kernex-agent")
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS="), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build the agent: %v\n%s", err, out)
	}
	return path
}

func megabytes(b *testing.B, path string) float64 {
	b.Helper()
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return float64(info.Size()) / 1e6
}

// living is a released agent whose MQTT bytes are counted.
type living struct {
	*server
	proxy   *testkit.Proxy
	pid     int
	connect int64 // bytes of the first connection until its state was acknowledged
}

func start(b *testing.B, path string) *living {
	b.Helper()
	l := &living{server: newServer(b)}
	l.config.HeartbeatIntervalS = 86400
	l.proxy = testkit.NewProxy(b, strings.TrimPrefix(l.broker.URL, "tcp://"))
	dir := b.TempDir()
	run := func() *exec.Cmd {
		cmd := exec.Command(path, "--state", dir, "--broker", "tcp://"+l.proxy.Addr(), "--enroll-token", "claim",
			"--cpu-degraded", "0", "--memory-degraded", "0", "--memory-error", "0", "--disk-degraded", "0", "--disk-error", "0") // the load is the measurement's own
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		l.pid = cmd.Process.Pid
		return cmd
	}
	end := func(cmd *exec.Cmd) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}
	first := run() // enrols, which is not for every day
	l.await("the device", time.Minute, func() bool { return l.births == 1 && l.beats == 1 })
	end(first)
	before := l.bytes()
	again := run()
	b.Cleanup(func() { end(again) })
	l.await("the device", time.Minute, func() bool { return l.births == 2 && l.beats == 2 })
	rest(3 * time.Second) // the ack
	l.connect = l.bytes() - before
	return l
}

func (l *living) bytes() int64 {
	up, down := l.proxy.Passed()
	return up + down
}

func rest(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
}

// memory returns the agent's resident and anonymous memory in MiB, after a
// while of nothing.
func (l *living) memory(b *testing.B) (rss, anonymous float64) {
	b.Helper()
	rest(5 * time.Second)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(f[1], 64) // other lines have words
		switch f[0] {
		case "VmRSS:":
			rss = kib / 1024
		case "RssAnon:":
			anonymous = kib / 1024
		}
	}
	return rss, anonymous
}

// cpu returns what all threads of the agent have used, as the scheduler counts.
func (l *living) cpu(b *testing.B) time.Duration {
	b.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", l.pid))
	if err != nil || len(tasks) == 0 {
		b.Fatalf("threads of the agent: %v %v", tasks, err)
	}
	var all time.Duration
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // the thread has ended
		}
		first, _, _ := strings.Cut(string(text), " ")
		n, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		all += time.Duration(n)
	}
	return all
}

// needs is what a day costs.
type needs struct {
	cpu, idleCPU float64 // percent of a core
	beatCPU      time.Duration
	beats        int
	connect      int64
	beatBytes    float64
	pingBytes    float64
	day          float64 // bytes
}

// measure lets the agent be silent, then beat each second, then be silent on a
// connection whose pings are frequent.
func (l *living) measure(b *testing.B) (n needs) {
	b.Helper()
	n.connect = l.connect
	const idle = 20 * time.Second
	cpu := l.cpu(b)
	rest(idle)
	n.idleCPU = 100 * (l.cpu(b) - cpu).Seconds() / idle.Seconds()

	beats := func() (n int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.beats
	}
	interval := func(s int) {
		l.configure(func(c *fleet.Config) { c.HeartbeatIntervalS = s })
		rest(2 * time.Second) // the state report and its ack
	}
	interval(1)
	cpu, begun, from, before := l.cpu(b), time.Now(), beats(), l.bytes()
	l.await("heartbeats", 2*beating, func() bool { return l.beats-from >= int(beating.Seconds()) })
	n.beats = beats() - from
	n.beatBytes = float64(l.bytes()-before) / float64(n.beats)
	used := (l.cpu(b) - cpu).Seconds() - n.idleCPU/100*time.Since(begun).Seconds()
	n.beatCPU = time.Duration(used / float64(n.beats) * 1e9)
	n.cpu = n.idleCPU + 100*n.beatCPU.Seconds()/60

	births := l.births
	l.broker.Kick(device) // the keepalive follows the interval at the next connection: 30 s
	l.await("another connection", time.Minute, func() bool { return l.births > births })
	interval(86400)
	before = l.bytes()
	rest(silence)
	pings := float64(l.bytes() - before)
	n.pingBytes = pings / float64(int(silence/(35*time.Second)+1)) // paho looks each 5 s
	n.day = float64(n.connect) + 144*n.beatBytes + 360*n.pingBytes
	return n
}

// download returns the rate of a download over the loopback into dir in MB/s,
// the best of three: other programs run too.
func download(b *testing.B, dir string) (best float64) {
	b.Helper()
	data := noise(256 << 20)
	ref := refTo(data, fleet.PartSize(int64(len(data))))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}))
	defer s.Close()
	ref.URL = s.URL
	dir, err := os.MkdirTemp(dir, "kernex-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	client := fetch.NewClient(nil)
	defer client.CloseIdleConnections()
	path := filepath.Join(dir, ref.Checksum)
	f := &fetch.Fetcher{FS: &durable.FS{}, Path: func(string) string { return path },
		Client: client, Log: zerolog.Nop(), Backoff: time.Second, MinRate: 128}
	for range 3 {
		begun := time.Now()
		renew := func(context.Context) (protocol.BundleRef, error) { return ref, nil }
		if err := f.Fetch(b.Context(), ref, 0, renew, func(int64) {}); err != nil {
			b.Fatal(err)
		}
		best = max(best, float64(len(data))/1e6/time.Since(begun).Seconds())
		if err := os.Remove(path); err != nil {
			b.Fatal(err)
		}
	}
	return best
}
