package logging_test

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/logging"
)

func TestRepeatsAreCountedNotWritten(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := logging.WithoutRepeats(zerolog.New(&out).Level(zerolog.InfoLevel), 30*time.Second)
		say := func() {
			log.Error().Msg("claim")
			log.Warn().Msg("poll")
			log.Info().Msg("news")
		}
		for range 3 {
			say()
		}
		time.Sleep(30 * time.Second) // of the bubble's clock
		say()
		want := map[string]int{`"claim"`: 2, `"poll"`: 2, `"news"`: 4, `"repeated":2`: 2}
		for text, n := range want {
			if got := strings.Count(out.String(), text); got != n {
				t.Errorf("%d lines with %s, want %d:\n%s", got, text, n, out.String())
			}
		}
	})
}

func TestAtLevelDebugEveryLineIsWritten(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := logging.WithoutRepeats(zerolog.New(&out).Level(zerolog.DebugLevel), time.Hour)
	for range 3 {
		log.Error().Msg("claim")
	}
	if n := strings.Count(out.String(), "claim"); n != 3 {
		t.Errorf("%d lines, want 3", n)
	}
}
