package api_test

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/api"
)

var update = flag.Bool("update", false, "write schema/openapi.yaml")

const specFile = "../../schema/openapi.yaml"

func TestTheCheckedInOpenAPIIsCurrent(t *testing.T) {
	t.Parallel()
	want, err := api.OpenAPI()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(specFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(specFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what the API generates: run go test ./orchestrator/api -run OpenAPI -update", specFile)
	}
}
