package s3gw_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/kernexhq/kernex/pkg/s3gw"
	"github.com/kernexhq/kernex/pkg/testkit"
)

func TestMain(m *testing.M) {
	if s3gw.IsChild() {
		os.Exit(s3gw.Main())
	}
	goleak.VerifyTestMain(m)
}

func config(t *testing.T) s3gw.Config {
	return s3gw.Config{DataDir: filepath.Join(t.TempDir(), "s3"), Listen: "127.0.0.1:0",
		AccessKey: "key", SecretKey: "secret-key", Logger: zerolog.Nop()}
}

func start(t *testing.T, cfg s3gw.Config) *s3gw.Store {
	t.Helper()
	s, err := s3gw.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestAKilledStoreComesBackOnTheSameAddress(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	url := s.URL()
	if err := syscall.Kill(s.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 20*time.Second, func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			return false
		}
		_ = c.Close()
		return s.Restarts() == 1 && s.URL() == url
	})
}

func TestThePortOfAnotherServerIsNotTakenForTheStore(t *testing.T) {
	t.Parallel()
	other := start(t, config(t))
	cfg := config(t)
	cfg.Listen = strings.TrimPrefix(other.URL(), "http://")
	if s, err := s3gw.Start(t.Context(), cfg); err == nil {
		t.Errorf("a second store on %s started", s.URL())
	} else if !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("the error does not give the reason: %v", err)
	}
}

func TestSecretsAreNotInTheArguments(t *testing.T) {
	t.Parallel()
	s := start(t, config(t))
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.PID()), "cmdline"))
	if err != nil || strings.Contains(string(raw), "secret-key") {
		t.Errorf("arguments %q, %v", raw, err)
	}
}

func TestKeysAreRequired(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	cfg.SecretKey = ""
	if _, err := s3gw.Start(t.Context(), cfg); err == nil {
		t.Error("a store without a secret started")
	}
}
