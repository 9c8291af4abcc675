//go:build race

package objectstore_test

// memoryFactor is what the race detector's shadow memory adds; its manual says
// five to ten times.
const memoryFactor = 5
