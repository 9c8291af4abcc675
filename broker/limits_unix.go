//go:build unix

package broker

import "golang.org/x/sys/unix"

// maxClients is nine tenths of the descriptor limit: the rest is for files,
// the database and HTTP.
func maxClients() int {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil || lim.Cur > 1<<30 {
		return 1 << 20
	}
	return max(int(lim.Cur/10*9), 16)
}
