package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kernexhq/kernex/pkg/testkit"
)

// runProgram runs the program to its end.
func runProgram(t *testing.T, args ...string) (code int, words string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, args...)
	cmd.Env = append(os.Environ(), programEnv+"=1")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

func TestBadSettingsAreRefusedByName(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	closed := "host=127.0.0.1 port=1 user=nobody dbname=none sslmode=disable connect_timeout=2"
	good := map[string]string{
		"--postgres": closed, "--start-wait": "0s", "--s3-endpoint": "https://127.0.0.1:1", "--s3-access-key": "k", "--s3-secret-key-file": file("s3.key", "secret", 0o600),
		"--broker": "tcp://127.0.0.1:1", "--command-key-file": filepath.Join(dir, "command.key"),
	}
	for name, tc := range map[string]struct {
		change map[string]string // "" leaves a flag out
		flags  []string
		code   int
		want   string
	}{
		"no database":               {change: map[string]string{"--postgres": ""}, code: 2, want: "--postgres is needed"},
		"no broker":                 {change: map[string]string{"--broker": ""}, code: 2, want: "--broker is needed"},
		"no object store":           {change: map[string]string{"--s3-endpoint": ""}, code: 2, want: "--s3-endpoint is needed"},
		"no command key":            {change: map[string]string{"--command-key-file": ""}, code: 2, want: "--command-key-file is needed"},
		"database away":             {code: 1, want: "Postgres did not answer for 0s"},
		"database URL broken":       {change: map[string]string{"--postgres": "postgres://%zz"}, code: 2, want: "connect to Postgres"},
		"http storage":              {change: map[string]string{"--s3-endpoint": "http://127.0.0.1:1"}, code: 2, want: "--s3-insecure"},
		"public http storage":       {change: map[string]string{"--s3-public-url": "http://127.0.0.1:1"}, code: 2, want: "--s3-insecure"},
		"storage with a path":       {change: map[string]string{"--s3-endpoint": "https://h/p"}, code: 2, want: "scheme://host"},
		"broker scheme":             {change: map[string]string{"--broker": "http://h:1"}, code: 2, want: `scheme "http"`},
		"broker with a user":        {change: map[string]string{"--broker": "tcp://u:p@h:1"}, code: 2, want: "takes no user"},
		"certificate without key":   {change: map[string]string{"--broker": "mqtts://h:1", "--broker-cert": "c"}, code: 2, want: "--broker-cert and --broker-key"},
		"certificate without TLS":   {change: map[string]string{"--broker-cert": "c", "--broker-key": "k"}, code: 2, want: "use mqtts"},
		"CA missing":                {change: map[string]string{"--broker": "mqtts://h:1", "--broker-ca": dir + "/none"}, code: 1, want: "no such file"},
		"CA empty":                  {change: map[string]string{"--broker": "mqtts://h:1", "--broker-ca": file("ca", "x", 0o644)}, code: 1, want: "no certificate in PEM"},
		"password without user":     {change: map[string]string{"--broker-password-file": "f"}, code: 2, want: "needs --broker-username"},
		"user without password":     {change: map[string]string{"--broker-username": "u"}, code: 2, want: "needs --broker-password-file"},
		"no connections":            {change: map[string]string{"--broker-connections": "0"}, code: 2, want: "between 1 and 256"},
		"internal without secret":   {change: map[string]string{"--internal": "127.0.0.1:0"}, code: 2, want: "belong together"},
		"secret without internal":   {change: map[string]string{"--secret-file": "f"}, code: 2, want: "belong together"},
		"short secret":              {change: map[string]string{"--internal": "127.0.0.1:0", "--secret-file": file("short", "x", 0o600)}, code: 2, want: "openssl rand"},
		"readable secret":           {change: map[string]string{"--internal": "127.0.0.1:0", "--secret-file": file("open", strings.Repeat("x", 40), 0o644)}, code: 1, want: "chmod 600"},
		"readable S3 key":           {change: map[string]string{"--s3-secret-key-file": file("open.key", "x", 0o640)}, code: 1, want: "chmod 600"},
		"port 70000":                {change: map[string]string{"--http": "127.0.0.1:70000"}, code: 2, want: "up to 65535"},
		"no port":                   {change: map[string]string{"--http": "127.0.0.1"}, code: 2, want: "HOST:PORT"},
		"wildcard root":             {change: map[string]string{"--root": "a/#"}, code: 2, want: "topic root"},
		"proxy":                     {change: map[string]string{"--trusted-proxy": "10.0.0.0/40"}, code: 2, want: "--trusted-proxy"},
		"size":                      {change: map[string]string{"--max-bundle": "5 parsecs"}, code: 2, want: "not a size"},
		"time without unit":         {change: map[string]string{"--start-wait": "5"}, code: 2, want: "--start-wait"},
		"negative time":             {flags: []string{"--start-wait=-5s"}, code: 2, want: "between 0s and 1h"},
		"unknown flag":              {flags: []string{"--bogus"}, code: 2, want: "--bogus"},
		"unknown command":           {flags: []string{"fly"}, code: 2, want: "fly"},
		"log level":                 {change: map[string]string{"--log-level": "loud"}, code: 2, want: "loud"},
		"settings file missing":     {change: map[string]string{"--config": dir + "/none.yaml"}, code: 2, want: "no such file"},
		"settings file with a typo": {change: map[string]string{"--config": file("typo.yaml", "brokr: x\n", 0o600)}, code: 2, want: `unknown key "brokr"`},
		"migrate without database":  {change: map[string]string{"--postgres": ""}, flags: []string{"migrate"}, code: 2, want: "--postgres is needed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := map[string]string{}
			for k, v := range good {
				all[k] = v
			}
			for k, v := range tc.change {
				all[k] = v
			}
			var args []string
			for k, v := range all {
				if v != "" {
					args = append(args, k, v)
				}
			}
			code, words := runProgram(t, append(args, tc.flags...)...)
			if code != tc.code || !strings.Contains(words, tc.want) {
				t.Errorf("exit code %d, want %d and %q in:\n%s", code, tc.code, tc.want, words)
			}
		})
	}
}

func TestHelpAndVersionEndWell(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--help"}, {"version"}, {"migrate", "--help"}} {
		if code, words := runProgram(t, args...); code != 0 || !strings.Contains(words, "kernex-orchestrator") {
			t.Errorf("%v: exit code %d: %s", args, code, words)
		}
	}
}

func TestAPooledDatabaseGetsNoPreparedStatements(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"postgres://h/db":                       "postgres://h/db?binary_parameters=yes",
		"postgres://h/db?sslmode=disable":       "postgres://h/db?sslmode=disable&binary_parameters=yes",
		"host=h dbname=db":                      "host=h dbname=db binary_parameters=yes",
		"postgres://h/db?binary_parameters=yes": "postgres://h/db?binary_parameters=yes",
	} {
		s := settings{Postgres: in, PostgresDirect: "host=direct"}
		if got := s.dsn(); got != want {
			t.Errorf("%s becomes %s", in, got)
		}
		s.PostgresDirect = ""
		if got := s.dsn(); got != in {
			t.Errorf("%s without a pooler becomes %s", in, got)
		}
	}
}

func TestSeveralMayMigrateOneDatabaseAtOnce(t *testing.T) {
	t.Parallel()
	dsn := testkit.EmptyPostgres(t)
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			if code, words := runProgram(t, "migrate", "--postgres", dsn); code != 0 || !strings.Contains(words, "this version's schema") {
				t.Errorf("exit code %d: %s", code, words)
			}
		})
	}
	all.Wait()
	// Through a pooler, a row is the lock.
	dsn = testkit.EmptyPostgres(t) + " binary_parameters=yes"
	for range 2 {
		all.Go(func() {
			if code, words := runProgram(t, "migrate", "--postgres", dsn); code != 0 {
				t.Errorf("pooled: exit code %d: %s", code, words)
			}
		})
	}
	all.Wait()
}
