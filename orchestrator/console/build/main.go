// Command build bundles the console's sources into orchestrator/console/dist,
// which is committed: whoever builds Kernex needs no JavaScript tools.
//
//	go run ./orchestrator/console/build
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/evanw/esbuild/pkg/api"
)

func main() {
	if err := run("orchestrator/console"); err != nil {
		fmt.Fprintln(os.Stderr, "build the console:", err)
		os.Exit(1)
	}
}

// run builds dir/src into dir/dist and removes whatever else was there.
func run(dir string) error {
	files, err := build(filepath.Join(dir, "src"))
	if err != nil {
		return err
	}
	dist := filepath.Join(dir, "dist")
	if err := os.RemoveAll(dist); err != nil {
		return fmt.Errorf("empty the output folder: %w", err)
	}
	if err := os.MkdirAll(dist, 0o755); err != nil {
		return fmt.Errorf("make the output folder: %w", err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dist, name), data, 0o644); err != nil {
			return fmt.Errorf("write an asset: %w", err)
		}
	}
	return nil
}

// build returns the files of dist by name. Assets carry a digest of their
// content in the name, so that browsers may keep them for ever; index.html, the
// only fixed name, refers to them.
func build(src string) (map[string][]byte, error) {
	abs, err := filepath.Abs(src)
	if err != nil {
		return nil, fmt.Errorf("find the sources: %w", err)
	}
	r := api.Build(api.BuildOptions{
		AbsWorkingDir: abs,
		EntryPoints:   []string{"main.ts", "style.css", "favicon.svg"},
		Outdir:        abs,
		Bundle:        true,
		Format:        api.FormatESModule,
		Target:        api.ES2022,
		// The browsers of the last three years: style.css nests nothing and
		// needs no prefix there.
		Engines:           []api.Engine{{Name: api.EngineChrome, Version: "110"}, {Name: api.EngineFirefox, Version: "115"}, {Name: api.EngineSafari, Version: "16.4"}},
		Loader:            map[string]api.Loader{".svg": api.LoaderCopy},
		MinifyWhitespace:  true,
		MinifyIdentifiers: true,
		MinifySyntax:      true,
		Charset:           api.CharsetUTF8,
		LegalComments:     api.LegalCommentsNone,
	})
	if len(r.Errors) > 0 || len(r.Warnings) > 0 {
		all := append(api.FormatMessages(r.Errors, api.FormatMessagesOptions{}), api.FormatMessages(r.Warnings, api.FormatMessagesOptions{Kind: api.WarningMessage})...)
		return nil, errors.New(strings.Join(all, "\n"))
	}
	page, err := os.ReadFile(filepath.Join(src, "index.html"))
	if err != nil {
		return nil, fmt.Errorf("read the page: %w", err)
	}
	text := string(page)
	files := map[string][]byte{}
	for _, f := range r.OutputFiles {
		name := filepath.Base(f.Path)
		sum := sha256.Sum256(f.Contents)
		ext := path.Ext(name)
		hashed := strings.TrimSuffix(name, ext) + "-" + hex.EncodeToString(sum[:6]) + ext
		mark := "{{" + name + "}}"
		if !strings.Contains(text, mark) {
			return nil, fmt.Errorf("index.html does not refer to %s", mark)
		}
		text = strings.ReplaceAll(text, mark, hashed)
		files[hashed] = f.Contents
	}
	if at := strings.Index(text, "{{"); at >= 0 {
		return nil, fmt.Errorf("index.html refers to what no source makes: %.40q", text[at:])
	}
	files["index.html"] = []byte(text)
	return files, nil
}
