// Command gen writes Mosquitto's access lists, for another topic root or after a
// change of the policy:
//
//	go run ./deployments/mosquitto/gen [-root TOPIC] [DIR]
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kernexhq/kernex/deployments/mosquitto"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func main() {
	root := flag.String("root", protocol.DefaultRoot, "`TOPIC` root")
	flag.Parse()
	dir := flag.Arg(0)
	if dir == "" {
		dir = "deployments/mosquitto"
	}
	if err := write(dir, *root); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func write(dir, root string) error {
	if err := protocol.CheckRoot(root); err != nil {
		return err
	}
	for name, text := range mosquitto.Files(root) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil { //nolint:gosec // no secret
			return err
		}
	}
	return nil
}
