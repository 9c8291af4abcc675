package up

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
)

// welcome prints where everything is and the next command to type.
func (s *stack) welcome(out io.Writer) {
	url := "http://" + s.orch.Addr().String()
	fmt.Fprintln(out, "\nKernex is ready.")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "  console, API\t%s\t(its reference: %s/docs)\n", url, url)
	fmt.Fprintf(w, "  devices\ttcp://%s\t(MQTT)\n", s.broker.Addr())
	fmt.Fprintf(w, "  admin token\t%s\n", shown(filepath.Join(s.dir, "admin.token")))
	if s.cmd.Demo > 0 {
		fmt.Fprintf(w, "  demo devices\t%d, labelled demo=true\t(logs: %s)\n", s.cmd.Demo, shown(filepath.Join(s.dir, "demo", "*", "agent.log")))
	}
	_ = w.Flush() // the terminal is gone: nobody reads it
	fmt.Fprintln(out, "\nNext, in another terminal:")
	fmt.Fprintf(out, "  %s device list\n\n", s.cli(url))
}

// cli is how to call the CLI from the folder that `kernex up` was started in.
func (s *stack) cli(url string) string {
	prefix := ""
	if url != "http://127.0.0.1:8080" {
		prefix = "KERNEX_URL=" + url + " "
	}
	if s.cmd.Data != "./.kernex" {
		prefix += "KERNEX_TOKEN_FILE=" + shown(filepath.Join(s.dir, "admin.token")) + " "
	}
	return prefix + shown(os.Args[0])
}

// shown shortens a path below the working folder.
func shown(path string) string {
	wd, err := os.Getwd()
	if err != nil || !filepath.IsAbs(path) {
		return path
	}
	if rel, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}
