package postgres_test

import (
	"strings"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
)

func TestScopeTellsNoOtherDevicesFromNone(t *testing.T) {
	t.Parallel()
	s := looptest.Open(t)
	foreign, b := s.Online(), s.Bundle("edge", "1.0.0")
	scope, everyone := fleet.Selector{{Key: "site", Value: "berlin"}}, fleet.Selector{}
	refusal := func(r fleet.DeploymentRequest) string {
		r.Bundle, r.Version, r.Scope = b.Name, b.Version, scope
		_, err := s.DB.CreateDeployment(t.Context(), r, fleet.System)
		if fleet.ErrorCode(err) != fleet.CodeForbidden {
			t.Fatalf("%+v: %v", r, err)
		}
		return fleet.ErrorMessage(err)
	}
	there, none := refusal(fleet.DeploymentRequest{Devices: []string{foreign}}), refusal(fleet.DeploymentRequest{Devices: []string{"nobody"}})
	if strings.ReplaceAll(there, foreign, "nobody") != none {
		t.Fatalf("one that is there: %q, one that is not: %q", there, none)
	}
	if text := refusal(fleet.DeploymentRequest{Selector: &everyone}); strings.Contains(text, foreign) {
		t.Fatalf("names a device that the caller may not see: %q", text)
	}
}
