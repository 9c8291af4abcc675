package agent

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestAFlagWinsOverTheEnvironmentAndThatOverTheDefault(t *testing.T) {
	t.Parallel()
	env := map[string]string{"KERNEX_STATE": "/env", "KERNEX_BROKER": "tcp://env:1", "KERNEX_CPU_DEGRADED": "50", "KERNEX_VERSION": "1.0.0"}
	c, err := Parse([]string{"--state", "/flag", "--key-type=p256"}, func(k string) string { return env[k] }, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if c.State != "/flag" || c.Broker != "tcp://env:1" || c.CPUDegraded != 50 || c.MemoryDegraded != 90 || c.KeyType != "p256" || c.Root != "kernex/v1" {
		t.Errorf("%+v", c)
	}
}

func TestHelpNamesEveryFlagAndItsVariable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if _, err := Parse([]string{"--help"}, func(string) string { return "" }, &out); !errors.Is(err, ErrShown) {
		t.Fatal(err)
	}
	for _, want := range []string{"--state DIR", "--broker URL", "$KERNEX_ENROLL_TOKEN", "ed25519, p256, rsa2048"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in:\n%s", want, out.String())
		}
	}
}

func TestSettingsThatAreNoneAreRefusedByName(t *testing.T) {
	t.Parallel()
	none := func(string) string { return "" }
	for want, args := range map[string][]string{
		"--key-type":  {"--key-type", "dsa"},
		"nonsense":    {"--nonsense"},
		"surplus":     {"surplus"},
		"cpu-error":   {"--cpu-error", "many"},
		"--state and": {"--state", "x"},
		"disk-error":  {"--state", "x", "--broker", "tcp://b", "--disk-error", "101"},
		"wildcards":   {"--state", "x", "--broker", "tcp://b", "--root", "a/#"},
		"device_type": {"--state", "x", "--broker", "tcp://b", "--device-type", "a\x01"},
		"--keep":      {"--state", "x", "--broker", "tcp://b", "--keep-releases", "1"},
	} {
		c, err := Parse(args, none, &bytes.Buffer{})
		if err == nil {
			err = c.validate()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := Parse(nil, func(k string) string { return map[string]string{"KERNEX_KEEP_RELEASES": "x"}[k] }, &bytes.Buffer{}); err == nil || !strings.Contains(err.Error(), "KERNEX_KEEP_RELEASES") {
		t.Error(err)
	}
}
