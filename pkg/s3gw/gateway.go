// Package s3gw runs a private S3 store, the versitygw gateway over a folder, in
// a child process of the same binary: the gateway changes its process' working
// directory and allows one instance a process.
package s3gw

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

// childEnv carries the child's settings, secrets included: arguments would be
// readable by every user of the machine.
const childEnv = "KERNEX_S3GW"

// Limits of the gateway. A connection costs about a goroutine; requests beyond
// the limit are answered 503 SlowDown, which clients retry.
const (
	maxConnections = 32768
	maxRequests    = 8192
	maxParts       = 10000 // the S3 limit
)

// settings is what the parent tells the child.
type settings struct {
	Objects   string `json:"objects"`
	Sidecar   string `json:"sidecar"`
	Listen    string `json:"listen"`
	AccessKey string `json:"access_key"`
	SecretKey string `json:"secret_key"`
	Region    string `json:"region"`
	Health    string `json:"health"`
}

// IsChild says that this process was started to be the gateway: its main has
// nothing to do but os.Exit(s3gw.Main()).
func IsChild() bool { return os.Getenv(childEnv) != "" }

// Main is the gateway's main program; it returns the exit status. It ends on
// SIGTERM, SIGINT or with its parent.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "object store:", err)
		return 1
	}
	return 0
}

func serve(ctx context.Context) error {
	raw := os.Getenv(childEnv)
	if raw == "" {
		return errors.New(childEnv + " is not set: only `kernex up` starts this command")
	}
	var s settings
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		return errors.New(childEnv + " cannot be read") // its text holds the secret
	}
	if err := os.Unsetenv(childEnv); err != nil {
		return fmt.Errorf("clear the environment: %w", err)
	}
	store, err := meta.NewSideCar(s.Sidecar)
	if err != nil {
		return fmt.Errorf("open the metadata: %w", err)
	}
	var opts posix.PosixOpts
	opts.SideCarDir = s.Sidecar
	opts.SetNewDirPerm(0o700)
	opts.SetNewFilePerm(0o600)
	backend, err := posix.New(s.Objects, store, opts)
	if err != nil {
		return fmt.Errorf("open the objects: %w", err)
	}
	err = embedgw.RunVersityGW(ctx, backend, &embedgw.Config{
		RootUserAccess: s.AccessKey, RootUserSecret: s.SecretKey, Region: s.Region,
		Ports: []string{s.Listen}, HealthPath: s.Health,
		MaxConnections: maxConnections, MaxRequests: maxRequests, MultipartMaxParts: maxParts,
		KeepAlive: true, Quiet: true, DisableACLs: true,
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", s.Listen, err)
	}
	return nil
}

// folders makes and returns the two folders below dir. Neither name is a prefix
// of the other: the gateway takes a sidecar path that begins with the objects'
// path to be inside of it.
func folders(dir string) (objects, sidecar string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return "", "", fmt.Errorf("resolve the store's folder: %w", err)
	}
	objects, sidecar = filepath.Join(dir, "objects"), filepath.Join(dir, "metadata")
	for _, d := range []string{objects, sidecar} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return "", "", fmt.Errorf("make the store's folder: %w", err)
		}
	}
	return objects, sidecar, nil
}
