//go:build !race

package objectstore_test

const memoryFactor = 1
