package bundle

import (
	"strings"
	"testing"
)

func TestVersionsAreSemVerOrRefused(t *testing.T) {
	t.Parallel()
	for _, v := range []string{"0.0.0", "1.2.3", "1.0.0-alpha.1", "1.0.0-0.3.7", "1.0.0+20260701", "1.0.0-x-y.z+build.007", "1.0.0--", "99999999999999999999.0.0", "1.0.0-0a"} {
		if err := CheckVersion(v); err != nil {
			t.Errorf("%q refused: %v", v, err)
		}
	}
	for _, v := range []string{"", "1", "1.2", "1.2.3.4", "v1.2.3", "01.2.3", "1.2.3-", "1.2.3-01", "1.2.3-a..b", "1.2.3+", "1.2.3+a+b", "1.2.3 ", "1.2.-3", "1.2.3-ä", "1.2.3/../x", "1.0.0-" + strings.Repeat("a", 128)} {
		if err := CheckVersion(v); err == nil {
			t.Errorf("%q taken", v)
		}
	}
}

func TestVersionsRankAsSemVerSays(t *testing.T) {
	t.Parallel()
	ordered := []string{"junk", "0.9.10", "1.0.0-1", "1.0.0-2", "1.0.0-10", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.9", "1.0.10", "1.10.0", "2.0.0", "18446744073709551616.0.0"}
	for i, a := range ordered {
		for j, b := range ordered {
			want := min(1, max(-1, i-j))
			if got := CompareVersions(a, b); got != want {
				t.Errorf("CompareVersions(%s, %s) = %d, want %d", a, b, got, want)
			}
		}
	}
	if CompareVersions("1.0.0+a", "1.0.0+b") != 0 {
		t.Error("build metadata has a rank")
	}
}
