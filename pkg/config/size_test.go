package config

import "testing"

func TestASizeIsReadWithItsUnitOrRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Size{"1": 1, "512MiB": 512 << 20, "2 GiB": 2 << 30, "10MB": 1e7, "7B": 7} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q = %d, %v, want %d", text, s, err, want)
		}
	}
	for _, text := range []string{"", "MiB", "-1MiB", "0", "1.5GiB", "99999999TiB", "5 parsecs"} {
		var s Size
		if s.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q is taken for %d", text, s)
		}
	}
}
