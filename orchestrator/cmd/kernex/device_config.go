package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
)

type deviceConfigCmd struct {
	Get     configGetCmd     `cmd:"" help:"Show a device's configuration and what the device made of it."`
	Set     configSetCmd     `cmd:"" help:"Change the configuration of a device, or of all that a selector chooses; what is not named stays."`
	History configHistoryCmd `cmd:"" help:"List the versions of a device's configuration, newest first."`
}

type configGetCmd struct{ deviceArg }

func (c *configGetCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	cfg, err := api.Config(ctx, c.Device)
	if err != nil {
		return err
	}
	return a.showOne(cfg, a.configFields(cfg)...)
}

func (a *app) configFields(c fleet.DeviceConfig) []field {
	return []field{
		{"version", fmt.Sprintf("%d, changed %s by %s", c.Version, a.ago(c.UpdatedAt), first(c.UpdatedBy, "nobody: the defaults"))},
		{"device has", deviceHas(c)},
		{"heartbeat interval", fmt.Sprintf("%d s", c.HeartbeatIntervalS)},
		{"heartbeat timeout", fmt.Sprintf("%d s", c.HeartbeatTimeoutS)},
		{"deploy timeout", fmt.Sprintf("%d s", c.DeployTimeoutS)},
		{"log level", c.LogLevel},
		{"metadata", jsonText(c.Metadata)},
	}
}

func deviceHas(c fleet.DeviceConfig) string {
	if c.ReportedVersion == 0 {
		return "nothing reported yet"
	}
	s := fmt.Sprintf("version %d, %s", c.ReportedVersion, first(c.Outcome, "no outcome"))
	if c.Error != "" {
		s += ": " + c.Error
	}
	return s
}

func jsonText(m map[string]any) string {
	if len(m) == 0 {
		return ""
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

type configSetCmd struct {
	Device            string   `arg:"" optional:"" help:"Device id; or else --selector."`
	Selector          *string  `short:"l" placeholder:"S" help:"Every device with these labels; '' is the whole fleet. Not with --set or --unset."`
	HeartbeatInterval *int     `placeholder:"S" help:"Seconds between heartbeats, 1-86400."`
	HeartbeatTimeout  *int     `placeholder:"S" help:"Seconds of silence beyond the interval before the device counts as offline, 5-3600."`
	DeployTimeout     *int     `placeholder:"S" help:"Seconds one step of a deployment may take, 1-86400."`
	LogLevel          *string  `placeholder:"LEVEL" help:"debug, info, warn or error."`
	Set               []string `sep:"none" placeholder:"KEY=VALUE" help:"Set a metadata key; JSON values keep their type (0.7, true), other text is a string."`
	Unset             []string `placeholder:"KEY" help:"Remove a metadata key."`
}

func (c *configSetCmd) Run(ctx context.Context, a *app) error {
	set, err := parseMetadata(c.Set)
	if err != nil {
		return err
	}
	p := fleet.ConfigPatch{HeartbeatIntervalS: c.HeartbeatInterval, HeartbeatTimeoutS: c.HeartbeatTimeout, DeployTimeoutS: c.DeployTimeout, LogLevel: c.LogLevel}
	metadata := len(set)+len(c.Unset) > 0
	if !metadata && p.HeartbeatIntervalS == nil && p.HeartbeatTimeoutS == nil && p.DeployTimeoutS == nil && p.LogLevel == nil {
		return usagef("nothing to set (see kernex device config set --help)")
	}
	if err := p.Apply(fleet.DefaultConfig()).Validate(); err != nil {
		return usagef("%s", fleet.ErrorMessage(err))
	}
	switch {
	case (c.Device == "") == (c.Selector == nil):
		return usagef("name one device, or choose many with --selector")
	case c.Selector != nil && metadata: // the API would replace each device's whole map
		return usagef("--set and --unset change one device; with --selector use the other flags")
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	if c.Selector != nil {
		n, err := api.SetConfigs(ctx, *c.Selector, p)
		if err != nil {
			return err
		}
		return a.say(n, "%d of %d devices have a new configuration version", n.Changed, n.Devices)
	}
	cfg, err := c.apply(ctx, api, p, set)
	if err != nil {
		return err
	}
	return a.say(cfg, "device %s: configuration version %d", c.Device, cfg.Version)
}

// apply changes one device. For single metadata keys the map is read first and
// written under its version, again if someone was faster: the API replaces it
// as a whole.
func (c *configSetCmd) apply(ctx context.Context, api *client.Client, p fleet.ConfigPatch, set map[string]any) (fleet.DeviceConfig, error) {
	if len(set)+len(c.Unset) == 0 {
		return api.SetConfig(ctx, c.Device, p, 0)
	}
	for try := 0; ; try++ {
		cfg, err := api.Config(ctx, c.Device)
		if err != nil {
			return cfg, err
		}
		p.Metadata = map[string]any{}
		maps.Copy(p.Metadata, cfg.Metadata)
		maps.Copy(p.Metadata, set)
		for _, k := range c.Unset {
			delete(p.Metadata, k)
		}
		cfg, err = api.SetConfig(ctx, c.Device, p, cfg.Version)
		if fleet.ErrorCode(err) != fleet.CodeStale || try == 4 {
			return cfg, err
		}
	}
}

func parseMetadata(args []string) (map[string]any, error) {
	m := map[string]any{}
	for _, s := range args {
		k, text, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, usagef("--set %q: want KEY=VALUE", s)
		}
		var v any
		if json.Unmarshal([]byte(text), &v) != nil {
			v = text
		}
		m[k] = v
	}
	return m, nil
}

type configHistoryCmd struct {
	deviceArg
	Limit int `default:"0" help:"The most to list; 0 is all."`
}

func (c *configHistoryCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	if err := checkLimit(c.Limit); err != nil {
		return err
	}
	p, err := api.ConfigHistory(ctx, c.Device, c.Limit)
	if err != nil {
		return err
	}
	head := []string{"VERSION", "WHEN", "BY", "INTERVAL", "TIMEOUT", "DEPLOY", "LOG", "METADATA", "OUTCOME", "ERROR"}
	return showList(a, p, "versions", head, func(v fleet.ConfigVersion) []string {
		s := func(n int) string { return fmt.Sprintf("%ds", n) }
		return []string{fmt.Sprint(v.Version), a.ago(v.CreatedAt), v.CreatedBy, s(v.HeartbeatIntervalS), s(v.HeartbeatTimeoutS), s(v.DeployTimeoutS), v.LogLevel, jsonText(v.Metadata), v.Outcome, v.Error}
	})
}
