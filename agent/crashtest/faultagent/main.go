// Command faultagent is the agent with one fault in its file calls, for the
// tests of package crashtest alone. KERNEX_FAULT is kind:n; n counts the moments
// before and after each call from 0, and at moment n the process kills itself
// (kill) or the call fails (eio, enospc). KERNEX_MUTATION breaks a rule of the
// update machine, to see that the tests notice.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/kernexhq/kernex/agent"
	"github.com/kernexhq/kernex/agent/run"
	"github.com/kernexhq/kernex/pkg/durable"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == run.ShimCommand {
		os.Exit(run.Shim(os.Args[2:]))
	}
	if err := do(); err != nil {
		fmt.Fprintf(os.Stderr, "faultagent: %v\n", err)
		os.Exit(1)
	}
}

func do() error {
	cfg, err := agent.Parse(os.Args[1:], os.Getenv, os.Stdout)
	if err != nil {
		return err
	}
	var moments atomic.Int64
	hook, err := fault(os.Getenv("KERNEX_FAULT"), &moments)
	if err != nil {
		return err
	}
	if m := os.Getenv("KERNEX_MUTATION"); m != "" {
		hook = both(mutation(m), hook)
	}
	cfg.Files, cfg.Retry = &durable.FS{Hook: hook}, 20*time.Millisecond
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	a, err := agent.New(cfg)
	if err == nil {
		err = a.Run(ctx)
	}
	fmt.Fprintf(os.Stderr, "moments %d\n", moments.Load())
	return err
}

func both(a, b durable.Hook) durable.Hook {
	return func(c durable.Call, before bool) error {
		return errors.Join(a(c, before), b(c, before))
	}
}

// fault is the hook of KERNEX_FAULT; moments counts what it sees.
func fault(spec string, moments *atomic.Int64) (durable.Hook, error) {
	kind, n, _ := strings.Cut(spec, ":")
	at, err := strconv.ParseInt(n, 10, 64)
	var strike func() error
	switch kind {
	case "":
		at, err = -1, nil
	case "kill":
		strike = func() error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) }
	case "eio":
		strike = func() error { return syscall.EIO }
	case "enospc":
		strike = func() error { return syscall.ENOSPC }
	default:
		err = fmt.Errorf("KERNEX_FAULT is %q", spec)
	}
	return func(c durable.Call, before bool) error {
		if moments.Add(1)-1 != at {
			return nil
		}
		fmt.Fprintf(os.Stderr, "fault %s at moment %d, %s %s %s, before %t\n", kind, at, c.Op, c.Kind, c.Path, before)
		return strike()
	}, err
}

// mutation undoes, through the same seam, what the machine has just done.
//
//	drop:STATE   the record that enters STATE never reaches the journal
//	late:STATE   current is renamed only after the record that enters STATE
func mutation(spec string) durable.Hook {
	kind, state, _ := strings.Cut(spec, ":")
	record := []byte(`"state":"` + state + `"`)
	var mu sync.Mutex
	var pending func() error
	size, recorded := int64(-1), false
	return func(c durable.Call, before bool) error {
		mu.Lock()
		defer mu.Unlock()
		entering := c.Op == "journal" && c.Kind == durable.Write && bytes.Contains(c.Data, record)
		switch {
		case kind == "drop" && entering && before:
			info, err := os.Stat(c.Path)
			if err != nil {
				return err
			}
			size = info.Size()
		case kind == "drop" && entering:
			return os.Truncate(c.Path, size)
		case kind == "late" && c.Op == "switch" && c.Kind == durable.Rename && before:
			was, err := os.Readlink(c.To)
			if err != nil {
				return err
			}
			pending = func() error { return relink(was, c.To) }
		case kind == "late" && c.Op == "switch" && c.Kind == durable.Rename:
			is, err := os.Readlink(c.To)
			undo := pending
			pending = func() error { return relink(is, c.To) }
			return errors.Join(err, undo())
		case kind == "late" && entering && !before && pending != nil:
			recorded = true
		case kind == "late" && recorded && c.Op == "journal" && c.Kind == durable.Sync && !before:
			recorded = false
			redo := pending
			pending = nil
			return redo()
		}
		return nil
	}
}

func relink(target, link string) error {
	if err := os.Symlink(target, link+".mutation"); err != nil {
		return err
	}
	return os.Rename(link+".mutation", link)
}
