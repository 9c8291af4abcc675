// Package logs keeps the log of a bundle's program: on disk, bounded and
// rotated, one stamped line each, and sends what the orchestrator asks for
// within a number of bytes a minute. Nothing of it is worth more than the
// program: what cannot be written or sent is dropped and counted.
package logs
