package config

import (
	"net"
	"strconv"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// Address checks a host:port to listen on; setting names it in the error.
func Address(setting, addr string) error {
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fleet.Errorf(fleet.CodeInvalid, "%s %q is no HOST:PORT, such as 127.0.0.1:1883", setting, addr)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fleet.Errorf(fleet.CodeInvalid, "%s %q: the port must be a number up to 65535", setting, addr)
	}
	return nil
}

// Loopback reports whether host, with or without a port, is this machine and
// nothing else: an empty host is every address.
func Loopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
