package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestTheCommittedConsoleIsWhatItsSourcesBuild(t *testing.T) {
	t.Parallel()
	want, err := build("../src")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("../dist")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got, err := os.ReadFile(filepath.Join("../dist", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if data, ok := want[e.Name()]; !ok || !bytes.Equal(data, got) {
			t.Errorf("dist/%s is out of date: run make ui", e.Name())
		}
		delete(want, e.Name())
	}
	for name := range want {
		t.Errorf("dist/%s is missing: run make ui", name)
	}
}

func TestABuildDoesNotDependOnItsFolder(t *testing.T) {
	t.Parallel()
	moved := t.TempDir()
	if err := os.CopyFS(moved, os.DirFS("../src")); err != nil {
		t.Fatal(err)
	}
	here, err := build("../src")
	if err != nil {
		t.Fatal(err)
	}
	there, err := build(moved)
	if err != nil {
		t.Fatal(err)
	}
	for name := range here {
		if !bytes.Equal(here[name], there[name]) {
			t.Errorf("%s differs when its sources are elsewhere", name)
		}
	}
}

func TestABrokenSourceBuildsNothing(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]string{"main.ts": "let = ;", "style.css": "a { color", "index.html": "{{main.js}} {{style.css}} {{favicon.svg}} {{other.js}}"} {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS("../src")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(broken), 0o600); err != nil {
			t.Fatal(err)
		}
		if files, err := build(dir); err == nil {
			t.Errorf("a broken %s gave %d files and no error", name, len(files))
		}
	}
}
