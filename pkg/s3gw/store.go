package s3gw

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/child"
)

// DefaultRegion is what the store is called if Config names no region.
const DefaultRegion = "us-east-1"

// Config says what to run.
type Config struct {
	// DataDir gets the objects, their metadata and the child's log.
	DataDir string
	// Listen is host:port. Port 0 picks a free one, kept over restarts.
	Listen string
	// AccessKey and SecretKey are the root account's, the only one.
	AccessKey, SecretKey string
	// Region defaults to DefaultRegion; clients must name the same.
	Region string
	// Executable is a program whose main calls Main when IsChild, with Args;
	// empty means this program.
	Executable string
	Args       []string
	// Logger gets starts, restarts and stops; the child's own words go to
	// gateway.log in DataDir.
	Logger zerolog.Logger
}

// Store is a running gateway.
type Store struct {
	cfg      Config
	settings settings
	client   *http.Client
	keeper   *child.Keeper
}

var stopSteps = []child.Step{{Signal: syscall.SIGTERM, Wait: 2 * time.Second}}

// portTries bounds the search for a free port: between choosing one and the
// child's listening somebody else may take it.
const portTries = 5

// poll is the pause between two questions whether the gateway answers.
const poll = 20 * time.Millisecond

// Start brings the store up and returns when it answers. It is restarted, with
// backoff, when it dies by itself. The context bounds the start only.
func Start(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.AccessKey == "" || cfg.SecretKey == "" {
		return nil, errors.New("object store: access key and secret key are needed")
	}
	if cfg.Region == "" {
		cfg.Region = DefaultRegion
	}
	if cfg.Executable == "" {
		cfg.Executable = "/proc/self/exe" // also right after the file was replaced
	}
	objects, sidecar, err := folders(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, settings: settings{
		Objects: objects, Sidecar: sidecar, AccessKey: cfg.AccessKey, SecretKey: cfg.SecretKey, Region: cfg.Region,
		// A path that nobody else answers tells our child from another
		// server on the same port.
		Health: "/health-" + strings.ToLower(rand.Text()),
	}}
	s.client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
	for try := 1; ; try++ {
		var picked bool
		if s.settings.Listen, picked, err = address(cfg.Listen); err != nil {
			return nil, err
		}
		s.keeper, err = child.Keep(ctx, "object store", cfg.Logger, s.launch, stopSteps...)
		if err == nil {
			cfg.Logger.Info().Str("listen", s.settings.Listen).Str("dir", cfg.DataDir).Msg("the object store is ready")
			return s, nil
		}
		if !picked || try == portTries || ctx.Err() != nil {
			return nil, err
		}
	}
}

// address resolves port 0 to a port that is free now.
func address(listen string) (addr string, picked bool, err error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", false, fmt.Errorf("object store: listen address: %w", err)
	}
	if port != "0" {
		return listen, false, nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return "", false, fmt.Errorf("object store: find a free port: %w", err)
	}
	defer l.Close()
	_, port, err = net.SplitHostPort(l.Addr().String())
	return net.JoinHostPort(host, port), true, err
}

func (s *Store) launch(ctx context.Context) (*child.Process, error) {
	raw, err := json.Marshal(s.settings)
	if err != nil {
		return nil, fmt.Errorf("object store: %w", err)
	}
	logFile, err := child.OpenLog(filepath.Join(s.cfg.DataDir, "gateway.log"))
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	cmd := exec.Command(s.cfg.Executable, s.cfg.Args...)
	cmd.Args[0] = "kernex-object-store" // what ps shows
	cmd.Env = append(os.Environ(), childEnv+"="+string(raw))
	cmd.Stdout, cmd.Stderr = logFile.File, logFile.File
	p, err := child.Start(cmd, syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	if err := s.awaitReady(ctx, p); err != nil {
		p.Stop(stopSteps...)
		return nil, fmt.Errorf("object store: %w; the end of its log: %s", err, logFile.Tail())
	}
	return p, nil
}

func (s *Store) awaitReady(ctx context.Context, p *child.Process) error {
	for {
		err := s.ask(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for it on %s: %w (last answer: %w)", s.settings.Listen, ctx.Err(), err)
		case <-p.Done():
			if err := p.Err(); err != nil {
				return fmt.Errorf("it ended while it started: %w", err)
			}
			return errors.New("it ended while it started")
		case <-time.After(poll):
		}
	}
}

func (s *Store) ask(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.dialable()+s.settings.Health, nil)
	if err != nil {
		return err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// dialable is the listen address with a host that can be connected to.
func (s *Store) dialable() string {
	host, port, err := net.SplitHostPort(s.settings.Listen)
	if err != nil {
		return s.settings.Listen
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port)
}

// URL returns the base URL for clients on this machine.
func (s *Store) URL() string { return "http://" + s.dialable() }

// Region returns the region that clients must name.
func (s *Store) Region() string { return s.cfg.Region }

// PID returns the child's process id.
func (s *Store) PID() int { return s.keeper.PID() }

// Restarts counts how often the child died by itself and was started again.
func (s *Store) Restarts() int { return s.keeper.Restarts() }

// Done is closed when the store was stopped for good.
func (s *Store) Done() <-chan struct{} { return s.keeper.Done() }

// Stop ends the child: SIGTERM lets running transfers finish for 2 s, then it
// is killed (an upload shows only when complete, so nothing is torn). The error
// is ctx's, when that ended first. It may be called more than once.
func (s *Store) Stop(ctx context.Context) error { return s.keeper.Stop(ctx) }
