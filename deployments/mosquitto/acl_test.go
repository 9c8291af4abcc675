package mosquitto_test

import (
	"os"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/deployments/mosquitto"
)

func TestTheAccessListsAreThoseOfThePolicy(t *testing.T) {
	t.Parallel()
	for name, want := range mosquitto.Files("") {
		got, err := os.ReadFile(name)
		if err != nil || string(got) != want {
			t.Errorf("%s is not up to date (%v); run: go run ./deployments/mosquitto/gen", name, err)
		}
	}
}

func TestEveryRuleIsInOneList(t *testing.T) {
	t.Parallel()
	all := ""
	for _, text := range mosquitto.Files("acme/v2") {
		all += text
	}
	clock := 0
	for _, r := range broker.Rules() {
		if r.Role == broker.RoleClock {
			clock++
		}
	}
	if n := strings.Count(all, " acme/v2/"); n != len(broker.Rules())-clock {
		t.Errorf("%d lines for %d rules:\n%s", n, len(broker.Rules())-clock, all)
	}
	if strings.Contains(all, "{id}") {
		t.Errorf("an id was left:\n%s", all)
	}
}
