package config

import (
	"errors"
	"fmt"
	"io"

	"github.com/alecthomas/kong"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// The exit codes of every program.
const (
	ExitDone   = 0
	ExitFailed = 1
	ExitUsage  = 2 // a setting is wrong: starting again does not help
)

// Parse fills v, a struct of flags with File embedded, from the command line,
// KERNEX_* variables and the settings file, and returns the chosen command. An
// empty command means that all is said: exit with code.
func Parse(v any, name, description string, args []string, stdout, stderr io.Writer) (command string, code int) {
	exited := -1
	parser, err := kong.New(v, kong.Name(name), kong.Description(description), kong.DefaultEnvars("KERNEX"), kong.Configuration(YAML),
		kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))
	if err != nil {
		return "", Exit(stderr, name, err)
	}
	k, err := parser.Parse(args)
	switch {
	case exited >= 0: // --help has printed
		return "", exited
	case err != nil:
		fmt.Fprintf(stderr, "%s: %v (see %s --help)\n", name, err, name)
		return "", ExitUsage
	}
	return k.Command(), ExitDone
}

// Exit prints err, unless nil, on one line and returns the exit code for it.
func Exit(stderr io.Writer, name string, err error) int {
	var e *fleet.Error
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &e) && e.Code == fleet.CodeInvalid:
		fmt.Fprintf(stderr, "%s: %s\n", name, e.Message)
		return ExitUsage
	}
	fmt.Fprintf(stderr, "%s: %v\n", name, err)
	return ExitFailed
}
