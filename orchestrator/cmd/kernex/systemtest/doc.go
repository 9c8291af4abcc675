// Package systemtest runs the real programs, as a user would, against each
// other: it holds tests only.
package systemtest
