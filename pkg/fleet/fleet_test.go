package fleet

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestAFinalTargetNeverChanges(t *testing.T) {
	t.Parallel()
	for _, from := range TargetStates {
		for _, to := range TargetStates {
			if from.Final() && from.CanBecome(to) {
				t.Errorf("%s -> %s is allowed", from, to)
			}
		}
	}
}

func TestEveryTargetWalkEndsAndNeverGoesBack(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, seen := TargetPending, map[TargetState]bool{}
		for !s.Final() {
			if seen[s] {
				t.Fatalf("%s twice", s)
			}
			seen[s] = true
			var next []TargetState
			for _, n := range TargetStates {
				if s.CanBecome(n) {
					next = append(next, n)
				}
			}
			if len(next) == 0 {
				t.Fatalf("%s is open and has no way on", s)
			}
			s = rapid.SampledFrom(next).Draw(t, "next")
		}
	})
}

func TestOnlyAnUnreachedTargetExpiresAndOnlyAReachedOneTimesOut(t *testing.T) {
	t.Parallel()
	for _, s := range TargetStates {
		if s.Final() {
			continue
		}
		if s.CanBecome(TargetExpired) == s.CanBecome(TargetTimedOut) {
			t.Errorf("%s: exactly one of expired and timed_out must be possible", s)
		}
	}
}

func TestAFinalDeploymentNeverChanges(t *testing.T) {
	t.Parallel()
	all := []DeploymentStatus{DeploymentPending, DeploymentAwaitingApproval, DeploymentInProgress, DeploymentPaused, DeploymentSuccess, DeploymentFailed, DeploymentCancelled}
	for _, from := range all {
		open := false
		for _, to := range all {
			if from.Final() && from.CanBecome(to) {
				t.Errorf("%s -> %s is allowed", from, to)
			}
			open = open || from.CanBecome(to)
		}
		if !from.Final() && !open {
			t.Errorf("%s has no way on", from)
		}
	}
}

func TestASelectorReadsItsOwnText(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var want Selector
		for range rapid.IntRange(0, 4).Draw(t, "n") {
			want = append(want, Requirement{
				Key: rapid.StringMatching(`[a-z][a-z0-9]{0,8}`).Draw(t, "k"), Value: rapid.StringMatching(`([a-z0-9]{1,8})?`).Draw(t, "v"), Not: rapid.Bool().Draw(t, "not"),
			})
		}
		got, err := ParseSelector(want.String())
		if err != nil || got.String() != want.String() {
			t.Fatalf("ParseSelector(%q) = %q, %v", want.String(), got.String(), err)
		}
	})
}

func TestASelectorMatchesByEqualityAndAbsence(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sel  string
		l    Labels
		want bool
	}{
		{"", Labels{}, true},
		{"site=berlin", Labels{"site": "berlin", "x": "y"}, true},
		{"site==berlin", Labels{"site": "berlin"}, true},
		{"site=berlin", Labels{"site": "bern"}, false},
		{"site=berlin", Labels{}, false},
		{"ring!=canary", Labels{}, true},
		{"ring!=canary", Labels{"ring": "canary"}, false},
		{"site=berlin,ring!=canary", Labels{"site": "berlin", "ring": "wide"}, true},
	} {
		sel, err := ParseSelector(tc.sel)
		if err != nil || sel.Matches(tc.l) != tc.want {
			t.Errorf("%q on %v: %v (%v), want %v", tc.sel, tc.l, !tc.want, err, tc.want)
		}
	}
}

func TestABadSelectorIsRefusedWithTheBadPart(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"site", "=x", "a=b,,c=d", "a=b c", "a='x'", "a>b", "a!b", strings.Repeat("a", 64) + "=b", "a=b;drop"} {
		if _, err := ParseSelector(s); ErrorCode(err) != CodeInvalid || !strings.Contains(err.Error(), s) {
			t.Errorf("ParseSelector(%q) = %v, want invalid with the text", s, err)
		}
	}
}

func FuzzParseSelectorNeverMatchesWhatItCannotPrint(f *testing.F) {
	f.Add("site=berlin,ring!=canary")
	f.Fuzz(func(t *testing.T, s string) {
		sel, err := ParseSelector(s)
		if err != nil {
			return
		}
		again, err := ParseSelector(sel.String())
		if err != nil || again.String() != sel.String() {
			t.Fatalf("%q -> %q -> %q, %v", s, sel, again, err)
		}
	})
}

func TestAConfigPatchKeepsAbsentKeys(t *testing.T) {
	t.Parallel()
	ten := 10
	got := ConfigPatch{HeartbeatIntervalS: &ten}.Apply(DefaultConfig())
	want := DefaultConfig()
	want.HeartbeatIntervalS = 10
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("Apply = %+v, want %+v", got, want)
	}
}

func TestAConfigOutOfBoundsIsRefusedWithItsValue(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Config){
		"heartbeat_interval_s is 0":     func(c *Config) { c.HeartbeatIntervalS = 0 },
		"heartbeat_interval_s is 86401": func(c *Config) { c.HeartbeatIntervalS = 86401 },
		"heartbeat_timeout_s is 4":      func(c *Config) { c.HeartbeatTimeoutS = 4 },
		"deploy_timeout_s is -1":        func(c *Config) { c.DeployTimeoutS = -1 },
		`log_level is "loud"`:           func(c *Config) { c.LogLevel = "loud" },
		"bytes of JSON":                 func(c *Config) { c.Metadata = map[string]any{"a": strings.Repeat("x", MaxMetadata)} },
		"NUL":                           func(c *Config) { c.Metadata = map[string]any{"a": "\x00"} },
	} {
		c := DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate = %v, want %q", err, want)
		}
	}
}

func TestAnInternalErrorNeverShowsItsCause(t *testing.T) {
	t.Parallel()
	cause := errors.New("password=hunter2")
	for _, err := range []error{cause, Wrap(CodeInternal, cause, "x"), fmt.Errorf("wrap: %w", Wrap(CodeUnavailable, cause, "try again"))} {
		if strings.Contains(ErrorMessage(err), "hunter2") {
			t.Errorf("ErrorMessage(%v) = %q", err, ErrorMessage(err))
		}
		if !errors.Is(err, cause) {
			t.Errorf("%v lost its cause", err)
		}
	}
}

func TestPartsOfABundleAreAtMost64(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 1<<40).Draw(t, "size")
		if p := PartSize(size); (size+p-1)/p > 64 || p < 1<<20 {
			t.Fatalf("PartSize(%d) = %d", size, p)
		}
	})
}

func TestNewIDsAreValidAndDiffer(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for range 1000 {
		id := NewDeviceID()
		if !ValidDeviceID(id) || len(id) != 12 || seen[id] {
			t.Fatalf("NewDeviceID = %q", id)
		}
		seen[id] = true
	}
}
