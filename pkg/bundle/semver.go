package bundle

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// maxVersion bounds a version's length in bytes: it stands in topics, paths
// and columns.
const maxVersion = 128

var errNumber = errors.New("want MAJOR.MINOR.PATCH, three numbers without leading zeros")

// semver is a parsed version without its build metadata, which has no rank.
type semver struct {
	core [3]string
	pre  []string
}

// CheckVersion reports why s is no SemVer 2.0 version.
func CheckVersion(s string) error {
	_, err := parseVersion(s)
	return err
}

// CompareVersions returns -1, 0 or 1 by SemVer 2.0 precedence, which ignores
// build metadata. Both must have passed CheckVersion; text that has not ranks
// lowest.
func CompareVersions(a, b string) int {
	va, errA := parseVersion(a)
	vb, errB := parseVersion(b)
	switch {
	case errA != nil && errB != nil:
		return cmp.Compare(a, b)
	case errA != nil:
		return -1
	case errB != nil:
		return 1
	}
	for i := range va.core {
		if c := compareNumbers(va.core[i], vb.core[i]); c != 0 {
			return c
		}
	}
	return comparePre(va.pre, vb.pre)
}

func parseVersion(s string) (semver, error) {
	if s == "" {
		return semver{}, errors.New("it is missing")
	}
	if len(s) > maxVersion {
		return semver{}, fmt.Errorf("%d bytes, want at most %d", len(s), maxVersion)
	}
	rest, build, hasBuild := strings.Cut(s, "+")
	if hasBuild {
		for id := range strings.SplitSeq(build, ".") {
			if !isIdentifier(id) {
				return semver{}, fmt.Errorf("build metadata has %q, want letters, digits and hyphens", id)
			}
		}
	}
	core, pre, hasPre := strings.Cut(rest, "-")
	var v semver
	numbers := strings.Split(core, ".")
	if len(numbers) != len(v.core) {
		return semver{}, errNumber
	}
	for i, n := range numbers {
		if !isDigits(n) || leadingZero(n) {
			return semver{}, errNumber
		}
		v.core[i] = n
	}
	if hasPre {
		v.pre = strings.Split(pre, ".")
		for _, id := range v.pre {
			if !isIdentifier(id) || isDigits(id) && leadingZero(id) {
				return semver{}, fmt.Errorf("pre-release has %q, want letters, digits and hyphens, numbers without leading zeros", id)
			}
		}
	}
	return v, nil
}

func comparePre(a, b []string) int {
	if len(a) == 0 || len(b) == 0 {
		return cmp.Compare(len(b), len(a)) // a release ranks above its pre-releases
	}
	for i := range min(len(a), len(b)) {
		numA, numB := isDigits(a[i]), isDigits(b[i])
		var c int
		switch {
		case numA && numB:
			c = compareNumbers(a[i], b[i])
		case numA:
			c = -1
		case numB:
			c = 1
		default:
			c = cmp.Compare(a[i], b[i])
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// compareNumbers compares digits without leading zeros, of any length.
func compareNumbers(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func isIdentifier(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '-'
	})
}

func leadingZero(s string) bool { return len(s) > 1 && s[0] == '0' }
