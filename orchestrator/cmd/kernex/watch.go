package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strings"
	"time"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/protocol"
)

type watchCmd struct {
	Selector string `short:"l" help:"Only devices with these labels."`
	After    string `placeholder:"NUMBER" help:"Start after the event with this number; default: with what happens next."`
}

func (c *watchCmd) Run(ctx context.Context, a *app) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	f := client.Follow{Selector: c.Selector, After: c.After, Dropped: func(err error, wait time.Duration) {
		fmt.Fprintf(a.stderr, "kernex: %s; trying again in %s\n", printable(explainShort(err)), wait.Round(100*time.Millisecond))
	}}
	err = api.Events(ctx, f, func(e protocol.CloudEvent) error {
		line := eventLine(e)
		if a.json() {
			b, err := json.Marshal(e)
			if err != nil {
				return fmt.Errorf("print event %s: %w", e.ID, err)
			}
			line = string(b)
		}
		_, err := fmt.Fprintln(a.stdout, line)
		return err
	})
	if errors.Is(err, context.Canceled) {
		return nil // Ctrl-C is how watching ends
	}
	return err
}

// eventLine is an event for people: local time, what, about what, and the
// simple values of its data. Times and nested values are left to -o json.
func eventLine(e protocol.CloudEvent) string {
	line := fmt.Sprintf("%s  %-18s  %s", e.Time.Local().Format("15:04:05"), strings.TrimPrefix(e.Type, "kernex."), e.Subject)
	var data map[string]any
	if json.Unmarshal(e.Data, &data) != nil {
		return printable(line)
	}
	keys := make([]string, 0, len(data))
	for k := range data {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		switch v := data[k].(type) {
		case string:
			if _, err := time.Parse(time.RFC3339, v); err == nil || v == "" || v == e.Subject {
				continue
			}
			if digest.MatchString(v) {
				v = shortDigest(v)
			}
			line += fmt.Sprintf("  %s=%s", k, clip(v, 100))
		case float64, bool:
			line += fmt.Sprintf("  %s=%v", k, v)
		}
	}
	return printable(line)
}

var digest = regexp.MustCompile(`^[0-9a-f]{64}$`)
