package agent

import (
	"context"
	"net"
	"os"
	"strconv"
	"time"
)

// notifier tells systemd how the agent does, by the protocol of sd_notify(3):
// one datagram of VARIABLE=value lines. Without a socket it does nothing.
type notifier struct{ path string }

func newNotifier(path string) notifier { return notifier{path: path} }

// notifySettings reads what systemd has put into the environment of a service
// of Type=notify.
func notifySettings(getenv func(string) string) (socket string, watchdog time.Duration) {
	socket = getenv("NOTIFY_SOCKET")
	micros, err := strconv.ParseInt(getenv("WATCHDOG_USEC"), 10, 64)
	if pid := getenv("WATCHDOG_PID"); err != nil || micros <= 0 || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return socket, 0
	}
	return socket, time.Duration(micros) * time.Microsecond
}

// say sends one message. A service manager that does not listen is no reason to
// stop; whether it minds the silence is its own affair.
func (n notifier) say(text string) {
	if n.path == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.path, Net: "unixgram"})
	if err != nil {
		return
	}
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = conn.Write([]byte(text))
	_ = conn.Close()
}

// watchdog says at a third of every that the agent is alive, as long as alive
// returns. One that does not is what the watchdog is for.
func (n notifier) watchdog(ctx context.Context, every time.Duration, alive func()) {
	if n.path == "" || every <= 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		alive()
		n.say("WATCHDOG=1")
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// alive takes each lock that everything else needs, the journal's write among
// what is done under them: it returns if nothing stands still for ever.
func (a *Agent) alive() {
	a.machine.Report()
	a.cache.get()
	a.programs.supervisor.Status()
}
