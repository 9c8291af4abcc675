package config

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a number of bytes that a person writes as 512MiB or 2GiB.
type Size int64

var units = []struct {
	suffix string
	bytes  int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}}

// UnmarshalText reads a size; a number without a unit is bytes.
func (s *Size) UnmarshalText(text []byte) error {
	num, factor := strings.TrimSpace(string(text)), int64(1)
	for _, u := range units {
		if n, ok := strings.CutSuffix(num, u.suffix); ok {
			num, factor = strings.TrimSpace(n), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(num, 10, 64)
	if err != nil || n <= 0 || n > (1<<62)/factor {
		return fmt.Errorf("%q is not a size: write a positive number with B, KiB, MiB or GiB, such as 512MiB", text)
	}
	*s = Size(n * factor)
	return nil
}
