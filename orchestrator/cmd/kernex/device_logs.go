package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
)

type deviceLogsCmd struct {
	deviceArg
	Follow bool          `short:"f" help:"Go on with what comes, until Ctrl-C."`
	Lines  int           `short:"n" default:"100" help:"How many lines, the newest; at most 1000."`
	Level  string        `help:"This level and worse: debug, info, warn or error. Lines of programs have none and count as info."`
	Since  time.Duration `help:"Lines of the last so long, as in 1h."`
	Stored bool          `help:"Only what the device has sent before; it is not asked."`
	Wait   time.Duration `default:"3s" help:"How long the device may take to send without -f."`
}

func (c *deviceLogsCmd) Run(ctx context.Context, a *app) error {
	if c.Lines < 0 || c.Lines > 1000 || c.Follow && c.Stored {
		return usagef("--lines: use 0-1000; and --follow asks the device, --stored does not")
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	from := fleet.LogFilter{Level: c.Level}
	if c.Since > 0 {
		from.From = a.now().Add(-c.Since)
	}
	stored := func() (fleet.List[fleet.LogLine], error) {
		p, err := api.Logs(ctx, c.Device, from, max(c.Lines, 1))
		if c.Lines == 0 {
			p.Items = nil
		}
		slices.Reverse(p.Items)
		return p, err
	}
	newest, err := api.Logs(ctx, c.Device, fleet.LogFilter{}, 1)
	if err != nil {
		return err
	}
	after := ""
	if len(newest.Items) > 0 {
		after = newest.Items[0].ID
	}
	if c.Follow {
		return c.follow(ctx, a, api, after, stored)
	}
	if !c.Stored && c.Lines > 0 {
		if err := c.fetch(ctx, a, api, after); err != nil {
			return err
		}
	}
	p, err := stored()
	if err != nil {
		return err
	}
	if a.json() {
		return a.printJSON(p)
	}
	if len(p.Items) == 0 {
		fmt.Fprintln(a.stderr, "no lines")
	}
	for _, l := range p.Items {
		if _, err := fmt.Fprintln(a.stdout, logText(l)); err != nil {
			return err
		}
	}
	return nil
}

// fetch has the device send its newest lines and waits until they are there,
// or, since it may have none that are new, for a while.
func (c *deviceLogsCmd) fetch(ctx context.Context, a *app, api *client.Client, after string) error {
	came, quiet := false, time.NewTimer(c.Wait)
	defer quiet.Stop()
	f := client.LogFollow{After: first(after, "0"), Lines: c.Lines, Until: quiet.C}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	away := errors.New("away")
	f.Paused = func(err error) {
		a.complain(fmt.Errorf("%s; what it sent before", explainShort(err)))
		cancel(away)
	}
	err := api.FollowLogs(ctx, c.Device, f, func(fleet.LogLine) error {
		if !came {
			came = true
			quiet.Reset(time.Second) // the rest of the batch is there or about to be
		}
		return nil
	})
	switch {
	case errors.Is(context.Cause(ctx), away):
		return nil
	case fleet.ErrorCode(err) == fleet.CodeForbidden:
		a.complain(fmt.Errorf("this token may not ask the device; what it sent before"))
		return nil
	}
	return err
}

func (c *deviceLogsCmd) follow(ctx context.Context, a *app, api *client.Client, after string, stored func() (fleet.List[fleet.LogLine], error)) error {
	show := func(l fleet.LogLine) error {
		line := logText(l)
		if a.json() {
			b, err := json.Marshal(l)
			if err != nil {
				return fmt.Errorf("print line %s: %w", l.ID, err)
			}
			line = string(b)
		}
		_, err := fmt.Fprintln(a.stdout, line)
		return err
	}
	p, err := stored()
	if err != nil {
		return err
	}
	for _, l := range p.Items {
		if err := show(l); err != nil {
			return err
		}
	}
	err = api.FollowLogs(ctx, c.Device, client.LogFollow{After: after, Level: c.Level, Lines: c.Lines, Paused: func(err error) {
		fmt.Fprintf(a.stderr, "kernex: %s; trying again\n", printable(explainShort(err)))
	}}, show)
	if errors.Is(err, context.Canceled) {
		return nil // Ctrl-C is how following ends
	}
	return err
}

// logText is a line for people: the device's time, who speaks, and what.
func logText(l fleet.LogLine) string {
	who := l.Source
	if l.Level != "" && l.Level != "info" {
		who += " " + l.Level
	}
	indent := l.Message[:len(l.Message)-len(strings.TrimLeft(l.Message, " "))] // printable trims
	return fmt.Sprintf("%s  %s  %s%s", l.At.Local().Format("2006-01-02 15:04:05.000"), who, indent, printable(l.Message))
}

type deviceRestartCmd struct{ devicesArg }

func (c *deviceRestartCmd) Run(ctx context.Context, a *app) error {
	return a.forEach(ctx, c.Devices, func(api *client.Client, id string) error {
		ref, err := api.Restart(ctx, id)
		if err != nil {
			return err
		}
		return a.say(ref, "device %s: told to restart its program (%s)", id, ref.Command)
	})
}
