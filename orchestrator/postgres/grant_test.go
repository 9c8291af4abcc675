package postgres

import "testing"

func TestAGrantHoldsUntilItsCredentialChanges(t *testing.T) {
	t.Parallel()
	part := Grants{Devices: map[string]int64{"same": 3, "risen": 4, "revoked": -1}, Tokens: map[string]bool{"void": true}}
	whole := part
	whole.Whole = true
	for _, tc := range []struct {
		g      Grants
		device bool
		id     string
		want   bool
	}{
		{part, true, "same", true},
		{part, true, "risen", false},
		{part, true, "revoked", false},
		{part, true, "unmentioned", true},
		{whole, true, "deleted", false},
		{part, false, "void", false},
		{part, false, "good", true},
	} {
		if got := tc.g.Holds(tc.device, tc.id, 3); got != tc.want {
			t.Errorf("%s (whole %v) holds: %v, want %v", tc.id, tc.g.Whole, got, tc.want)
		}
	}
}
