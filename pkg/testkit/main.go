package testkit

import (
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// ends are the things to do after the last test.
var (
	endsMu sync.Mutex
	ends   []func()
)

func atEnd(f func()) {
	endsMu.Lock()
	defer endsMu.Unlock()
	ends = append(ends, f)
}

// Main is a TestMain: it runs the tests, stops the servers that they shared and
// fails if goroutines are left. Packages that start no goroutines can do
// without: the servers die with the process and the next one tidies up.
func Main(m *testing.M, options ...goleak.Option) { goleak.VerifyTestMain(runner{m}, options...) }

type runner struct{ m *testing.M }

func (r runner) Run() int {
	code := r.m.Run()
	endsMu.Lock()
	defer endsMu.Unlock()
	for _, f := range slices.Backward(ends) {
		f()
	}
	ends = nil
	return code
}

// SharedServers are the options that make goleak.VerifyNone, inside one test,
// overlook the servers that all tests of the process share.
func SharedServers() []goleak.Option {
	return []goleak.Option{
		goleak.IgnoreAnyFunction("github.com/kernexhq/kernex/pkg/child.Start.func1"),
		goleak.IgnoreAnyFunction("github.com/kernexhq/kernex/pkg/child.(*Keeper).run"),
	}
}
