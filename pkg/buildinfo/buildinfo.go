// Package buildinfo tells which version of Kernex a program is.
package buildinfo

import "runtime/debug"

// Version is set by the linker (make build); "dev" otherwise.
var Version = "dev"

// String returns the version and the toolchain, for --version.
func String() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return Version + " (" + info.GoVersion + ")"
	}
	return Version
}
