// Program server is the long-running part of the example bundle
// edge-inference: it serves a small model's predictions over HTTP on the
// device. Commands:
//
//	server serve --model FILE         serve until SIGTERM
//	server check --model FILE         say whether the model and the settings can be read
//	server healthcheck                ask the running server; exit 1 and say why if it is not well
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// environment is what the agent tells the program.
type environment struct {
	stateDir  string
	version   string
	device    string
	threshold float64 // score from which on the second label is answered
}

func readEnvironment(getenv func(string) string) (environment, error) {
	env := environment{stateDir: getenv("KERNEX_STATE_DIR"), version: getenv("KERNEX_VERSION"), device: getenv("KERNEX_DEVICE_ID"), threshold: 0.5}
	if env.stateDir == "" {
		return env, errors.New("KERNEX_STATE_DIR is not set")
	}
	if text := getenv("KERNEX_CONFIG_THRESHOLD"); text != "" {
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || !(n > 0 && n < 1) { // NaN fails too
			return env, fmt.Errorf("config key threshold is %q, want a number between 0 and 1", text)
		}
		env.threshold = n
	}
	return env, nil
}

func run(ctx context.Context, args []string, getenv func(string) string, out io.Writer) error {
	if len(args) == 0 {
		return errors.New("usage: server serve|check|healthcheck")
	}
	flags := flag.NewFlagSet("server "+args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error says it, once
	path := flags.String("model", "model.json", "model `file`")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	env, err := readEnvironment(getenv)
	if err != nil {
		return err
	}
	switch args[0] {
	case "healthcheck":
		return healthcheck(ctx, env)
	case "check", "serve":
	default:
		return fmt.Errorf("unknown command %q, want serve, check or healthcheck", args[0])
	}
	model, err := LoadModel(*path)
	if err != nil {
		return err
	}
	if args[0] == "serve" {
		return serve(ctx, env, model, out)
	}
	_, err = fmt.Fprintf(out, "model %s: %d features, %d layers; threshold %g\n", model.Name, len(model.Features), len(model.Layers), env.threshold)
	return err
}
