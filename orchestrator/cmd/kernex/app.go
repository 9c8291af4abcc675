package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/kernexhq/kernex/orchestrator/client"
	"github.com/kernexhq/kernex/pkg/fleet"
)

// localToken is where `kernex up` leaves the first admin token.
const localToken = ".kernex/admin.token"

// globals are the flags of every command. Each has an environment variable,
// read by app so that a test can give its own environment.
type globals struct {
	URL       string `name:"url" placeholder:"URL" help:"Address of the admin API; default http://127.0.0.1:8080 ($$KERNEX_URL)."`
	Token     string `placeholder:"TOKEN" help:"API token; files keep it out of the process list ($$KERNEX_TOKEN)."`
	TokenFile string `placeholder:"FILE" help:"File that holds the API token; default ./.kernex/admin.token for an API on this machine ($$KERNEX_TOKEN_FILE)."`
	Output    string `short:"o" enum:"table,json" default:"table" placeholder:"FORM" help:"table for people or json for programs."`
}

// app is what commands run with.
type app struct {
	stdout, stderr io.Writer
	env            func(string) string
	now            func() time.Time
	flags          *globals
}

// errReported fails the command without another word: all has been said.
var errReported = errors.New("already reported")

// client makes the API client of this command line.
func (a *app) client() (*client.Client, error) {
	u := first(a.flags.URL, a.env("KERNEX_URL"), "http://127.0.0.1:8080")
	token, err := a.token(u)
	if err != nil {
		return nil, err
	}
	c, err := client.New(u, token)
	if err != nil {
		return nil, usagef("%s; set --url or KERNEX_URL", fleet.ErrorMessage(err))
	}
	return c, nil
}

// token finds the API token: flags first, then the environment, then the file
// that `kernex up` writes into the directory it is started in. That file is
// used for an API on this machine only: it is sent nowhere else unasked.
func (a *app) token(apiURL string) (string, error) {
	if a.flags.Token != "" && a.flags.TokenFile != "" {
		return "", usagef("--token and --token-file: give one of them")
	}
	if a.flags.Token != "" {
		return a.flags.Token, nil
	}
	file := a.flags.TokenFile
	if file == "" {
		if t := a.env("KERNEX_TOKEN"); t != "" {
			return t, nil
		}
		file = a.env("KERNEX_TOKEN_FILE")
	}
	if file != "" {
		t, err := readToken(file)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		return t, nil
	}
	if !onThisMachine(apiURL) {
		return "", nil
	}
	t, err := readToken(localToken)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return "", fmt.Errorf("read the token: %w", err)
	}
	return t, nil
}

// readToken reads the first word of a file that is no larger than a token.
func readToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	words := strings.Fields(string(b))
	if len(words) != 1 {
		return "", fmt.Errorf("%s holds %d words, want one token", file, len(words))
	}
	return words[0], nil
}

func onThisMachine(apiURL string) bool {
	u, err := url.Parse(apiURL)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// complain prints err on one line: what is wrong and what to do about it.
func (a *app) complain(err error) {
	fmt.Fprintln(a.stderr, "kernex: "+printable(explain(err)))
}

func explain(err error) string {
	var e *fleet.Error
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	if !errors.As(err, &e) {
		return err.Error()
	}
	// What was put in front of e stays; e's own code and cause are for logs.
	doing, found := strings.CutSuffix(err.Error(), e.Error())
	if !found {
		doing = ""
	}
	s := doing + e.Message
	switch {
	case errors.Is(err, client.ErrUnreachable):
		s += "; is `kernex up` running? Set --url or KERNEX_URL"
	case e.Code == fleet.CodeUnauthorized:
		s += "; set --token, --token-file or KERNEX_TOKEN (`kernex up` writes the first token to DIR/admin.token)"
	}
	return s
}

// printable makes text that a device or a server chose safe on a terminal and
// fit for one line: control characters, escapes among them, become spaces.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.TrimSpace(s))
}
