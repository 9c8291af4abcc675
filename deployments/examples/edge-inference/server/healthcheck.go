package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// healthcheck asks the server whose address stands in the state directory and
// insists that it is this version on this device.
func healthcheck(ctx context.Context, env environment) error {
	data, err := os.ReadFile(filepath.Join(env.stateDir, addrFile))
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the server has not written its address yet")
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+strings.TrimSpace(string(data))+"/healthz", nil)
	if err != nil {
		return fmt.Errorf("%s: %w", addrFile, err)
	}
	// No proxy: the server is on this device, whatever the environment says.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("the server does not answer: %w", err)
	}
	var h health
	err = json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&h)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return fmt.Errorf("the server's answer cannot be read: %w", err)
	}
	switch {
	case h.Version != env.version || h.Device != env.device:
		return fmt.Errorf("version %s of device %s answers, want version %s of device %s", h.Version, h.Device, env.version, env.device)
	case res.StatusCode != http.StatusOK:
		return errors.New(h.Status)
	}
	return nil
}
