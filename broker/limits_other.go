//go:build !unix

package broker

// maxClients is a bound for systems without a descriptor limit to ask for.
func maxClients() int { return 1 << 16 }
