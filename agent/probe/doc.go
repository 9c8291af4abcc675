// Package probe looks at things: the host's own metrics, and whether the
// release that runs on it answers its health check.
package probe
