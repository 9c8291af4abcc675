package probe

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Sample is the host at one moment.
type Sample struct {
	UptimeS  int64
	CPUPct   float64 // of all cores, since a sample at least half a second before; since boot in the first
	MemoryMB float64 // in use, without caches that can be dropped
	MemPct   float64
	DiskPct  float64 // of the file system that holds the state directory, as df shows it
}

// Host reads metrics from /proc and statfs. Its methods may be called from any
// goroutine.
type Host struct {
	dir string

	mu         sync.Mutex
	busy, idle uint64 // when pct was measured
	pct        float64
}

// minTicks is the shortest time, in the kernel's hundredths of a second summed
// over all cores, that CPU use is measured over: a few milliseconds say nothing.
const minTicks = 50

// NewHost returns a Host that reports the disk that holds dir.
func NewHost(dir string) *Host { return &Host{dir: dir} }

// Read takes a sample. What cannot be read stays zero and is named in the
// error; the rest is valid.
func (h *Host) Read() (Sample, error) {
	var s Sample
	var err error
	keep := func(e error) {
		if err == nil {
			err = e
		}
	}
	keep(h.cpu(&s))
	keep(memory(&s))
	keep(disk(h.dir, &s))
	text, e := os.ReadFile("/proc/uptime")
	if e == nil {
		var up float64
		if _, e = fmt.Sscanf(string(text), "%f", &up); e == nil {
			s.UptimeS = int64(up)
		}
	}
	keep(e)
	if err != nil {
		return s, fmt.Errorf("read host metrics: %w", err)
	}
	return s, nil
}

func (h *Host) cpu(s *Sample) error {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var busy, idle uint64
	for i, f := range strings.Fields(line) {
		n, _ := strconv.ParseUint(f, 10, 64) // "cpu" itself is 0
		switch {
		case i == 4 || i == 5: // idle, iowait
			idle += n
		case i <= 8: // guest time, beyond, is in user already
			busy += n
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if b, i := busy-min(h.busy, busy), idle-min(h.idle, idle); b+i >= minTicks {
		h.pct = 100 * float64(b) / float64(b+i)
		h.busy, h.idle = busy, idle
	}
	s.CPUPct = h.pct
	return nil
}

func memory(s *Sample) error {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var total, available float64
	lines := bufio.NewScanner(f)
	for lines.Scan() && (total == 0 || available == 0) {
		field := strings.Fields(lines.Text())
		if len(field) < 2 {
			continue
		}
		kb, _ := strconv.ParseFloat(field[1], 64)
		switch field[0] {
		case "MemTotal:":
			total = kb
		case "MemAvailable:":
			available = kb
		}
	}
	if total > 0 {
		s.MemoryMB = (total - available) / 1024
		s.MemPct = 100 * (total - available) / total
	}
	return lines.Err()
}

func disk(dir string, s *Sample) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	used := float64(fs.Blocks - fs.Bfree)
	if all := used + float64(fs.Bavail); all > 0 {
		s.DiskPct = 100 * used / all
	}
	return nil
}

// Limits are the percentages from which a device counts as degraded or error.
// 0 turns one off.
type Limits struct{ CPU, Memory, Disk Limit }

// Limit is one metric's two thresholds, in percent.
type Limit struct{ Degraded, Error float64 }

// The words for a device's health.
const (
	Healthy  = "healthy"
	Degraded = "degraded"
	Failing  = "error"
)

// Status returns the worst word that a metric of s deserves.
func (l Limits) Status(s Sample) string {
	status := Healthy
	for _, m := range []struct {
		value float64
		limit Limit
	}{{s.CPUPct, l.CPU}, {s.MemPct, l.Memory}, {s.DiskPct, l.Disk}} {
		switch {
		case m.limit.Error > 0 && m.value >= m.limit.Error:
			return Failing
		case m.limit.Degraded > 0 && m.value >= m.limit.Degraded:
			status = Degraded
		}
	}
	return status
}

// BootID changes with every boot of the host; "" if the kernel does not tell.
func BootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// OS names the operating system, as people know it.
func OS() string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return runtime.GOOS
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "PRETTY_NAME="); ok {
			return strings.Trim(name, `"`)
		}
	}
	return runtime.GOOS
}

// Hardware describes the host for people and selectors: model, cores, memory,
// machine name.
func Hardware() map[string]any {
	h := map[string]any{"cores": runtime.NumCPU(), "arch": runtime.GOARCH}
	if name, err := os.Hostname(); err == nil {
		h["hostname"] = name
	}
	if model, err := os.ReadFile("/sys/firmware/devicetree/base/model"); err == nil {
		h["model"] = strings.Trim(string(model), "\x00\n ")
	}
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) == nil {
		h["memory_mb"] = int64(uint64(info.Totalram) * uint64(info.Unit) >> 20) //nolint:unconvert // 32 bits wide on ARM
	}
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		h["kernel"] = strings.TrimSpace(string(text))
	}
	return h
}
