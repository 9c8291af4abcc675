package pgcluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// debianDirs is where Debian and Ubuntu put the server's programs, which they
// keep out of PATH.
const debianDirs = "/usr/lib/postgresql/*/bin"

// oldest is the first release that has everything the schema uses.
const oldest = 14

// install is one set of server programs.
type install struct {
	dir   string // the real folder, symlinks resolved
	major int
}

func (i install) path(program string) string { return filepath.Join(i.dir, program) }

// findInstall returns the server programs to use: those of the given major
// version when major is not 0 (a data folder can be opened by its own version
// only), else the newest. Programs that the account cannot reach do not count.
func findInstall(ctx context.Context, who account, major int) (install, error) {
	var dirs []string
	for _, p := range filepath.SplitList(os.Getenv("PATH")) {
		// initdb looks for postgres beside itself, so what counts is the
		// folder that a link in PATH leads to.
		if real, err := filepath.EvalSymlinks(filepath.Join(p, "postgres")); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	if found, err := filepath.Glob(debianDirs); err == nil {
		dirs = append(dirs, found...)
	}
	var all []install
	var problems []string
	for _, dir := range dirs {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
		if slices.ContainsFunc(all, func(i install) bool { return i.dir == dir }) {
			continue
		}
		in, err := inspect(ctx, who, dir)
		if err != nil {
			problems = append(problems, err.Error())
			continue
		}
		all = append(all, in)
	}
	slices.SortStableFunc(all, func(a, b install) int { return cmp.Compare(b.major, a.major) })
	for _, in := range all {
		if major == 0 || in.major == major {
			return in, nil
		}
		problems = append(problems, fmt.Sprintf("%s is version %d", in.dir, in.major))
	}
	want := fmt.Sprintf("Postgres %d or later", oldest)
	if major != 0 {
		want = fmt.Sprintf("Postgres %d (the data folder's version)", major)
	}
	msg := "no " + want + " found in PATH or " + debianDirs
	if len(problems) > 0 {
		msg += ": " + strings.Join(problems, "; ")
	}
	return install{}, errors.New(msg + "; on Debian: apt-get install postgresql")
}

var versionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// inspect checks that dir holds the programs we need, that who can reach them
// and which version they are.
func inspect(ctx context.Context, who account, dir string) (install, error) {
	for _, name := range []string{"postgres", "initdb"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return install{}, fmt.Errorf("%s has no %s", dir, name)
		}
	}
	if parent := who.barrier(filepath.Join(dir, "postgres")); parent != "" {
		return install{}, fmt.Errorf("user %s cannot reach %s through %s", who.name, dir, parent)
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return install{}, fmt.Errorf("ask %s for its version: %w", dir, err)
	}
	m := versionPattern.FindSubmatch(out)
	if m == nil {
		return install{}, fmt.Errorf("%s is not Postgres: %q", dir, strings.TrimSpace(string(out)))
	}
	major, err := strconv.Atoi(string(m[1]))
	if err != nil || major < oldest {
		return install{}, fmt.Errorf("%s is version %s, too old", dir, m[1])
	}
	return install{dir: dir, major: major}, nil
}
