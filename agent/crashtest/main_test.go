package crashtest

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if binaries.dir != "" {
			_ = os.RemoveAll(binaries.dir)
		}
		os.Exit(code)
	}))
}
