package logging_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/kernexhq/kernex/pkg/logging"
)

func fields(t *testing.T, b *bytes.Buffer) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(b.Bytes(), &m); err != nil {
		t.Fatalf("%q: %v", b.String(), err)
	}
	return m
}

func TestALineIsJSONWithTheTimeInUTC(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, err := logging.New(logging.Config{Out: &b})
	if err != nil {
		t.Fatal(err)
	}
	log.Debug().Msg("below the level")
	log.Info().Int("n", 1).Msg("hello")
	m := fields(t, &b)
	at, err := time.Parse("2006-01-02T15:04:05.000Z", m["time"].(string))
	if err != nil || time.Since(at).Abs() > time.Minute {
		t.Errorf("time %v, %v", m["time"], err)
	}
	if m["message"] != "hello" || m["level"] != "info" || m["n"] != 1.0 {
		t.Errorf("%v", m)
	}
}

func TestConsoleLinesAreText(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, err := logging.New(logging.Config{Out: &b, Format: "console", Level: "debug"})
	if err != nil {
		t.Fatal(err)
	}
	log.Debug().Str("url", "https://x/?X-Amz-Signature=abc123").Msg("hello")
	if s := b.String(); !strings.Contains(s, "DBG hello") || strings.Contains(s, "abc123") || strings.Contains(s, "{") {
		t.Errorf("%q", s)
	}
}

func TestAFileIsNoTerminal(t *testing.T) {
	t.Parallel()
	f, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	log, err := logging.New(logging.Config{Out: f})
	if err != nil {
		t.Fatal(err)
	}
	log.Info().Msg("x")
	if raw, err := os.ReadFile(f.Name()); err != nil || !json.Valid(raw) {
		t.Errorf("%q, %v", raw, err)
	}
}

func TestUnknownSettingsAreRefused(t *testing.T) {
	t.Parallel()
	for _, cfg := range []logging.Config{{Level: "loud"}, {Format: "xml"}} {
		if _, err := logging.New(cfg); err == nil || !strings.Contains(err.Error(), "use ") {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestTheLevelCanBeChangedForDerivedLoggersToo(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log, level, err := logging.NewAdjustable(logging.Config{Out: &b, Level: "warn"})
	if err != nil {
		t.Fatal(err)
	}
	derived := log.With().Str("part", "x").Logger()
	derived.Info().Msg("quiet")
	if b.Len() != 0 {
		t.Errorf("at warn: %s", b.String())
	}
	if err := level.Set("debug"); err != nil {
		t.Fatal(err)
	}
	derived.Debug().Msg("loud")
	if m := fields(t, &b); m["message"] != "loud" {
		t.Errorf("at debug: %v", m)
	}
	if level.Set("loud") == nil {
		t.Error("an unknown level was accepted")
	}
}

const (
	presigned = "https://s3.example.com/b/k?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDSECRET%2F20260101%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20260101T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=0123456789abcdefSECRET"
	token     = "kx_SECRETabcdefghijklmnopqrstuvwxyz0123456789"
	jwt       = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJkZXZpY2UifQ.SECRETabc_-d"
)

func TestSecretsAreTakenOutOfEveryLine(t *testing.T) {
	t.Parallel()
	for name, value := range map[string]string{
		"presigned url": presigned, "token": token, "jwt": jwt,
		"header":       "Authorization: Bearer " + token,
		"claim token":  `{"token":"ke_SECRET-abcdefghijklmnopqrstuvwxyz0123456789"}`,
		"receipt":      "registration_token=kr_SECRET_abcdefghijklmnopqrstuvwxyz0123456789",
		"lower case":   strings.ToLower("x-amz-signature=") + "SECRET",
		"escaped url":  "next=https%3A%2F%2Fs3%2Fk%3FX-Amz-Signature%3DSECRET",
		"jwt unsigned": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJTRUNSRVQifQ.",
	} {
		var b bytes.Buffer
		log, err := logging.New(logging.Config{Out: &b})
		if err != nil {
			t.Fatal(err)
		}
		log.Error().Err(errors.New("get "+value+": refused")).Str("v", value).Interface("any", map[string]string{"url": value}).Msg(value)
		if s := b.String(); strings.Contains(s, "SECRET") || strings.Contains(s, "TRUNSRVQ") || strings.Contains(s, "eyJzdWIiOiJTRUNSRVQifQ") {
			t.Errorf("%s: %s", name, s)
		}
		if !json.Valid(b.Bytes()) {
			t.Errorf("%s: no longer JSON: %s", name, b.String())
		}
		if strings.Contains(logging.Redact(value), "SECRET") {
			t.Errorf("%s: Redact: %s", name, logging.Redact(value))
		}
	}
}

func TestHarmlessTextStays(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"device kx was seen", "broker_x", "kernex_ingest_messages_total", "https://s3.example.com/b/k?part=1", "eyJ", "a.b.c", ""} {
		if got := logging.Redact(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

func TestAURLKeepsWhatItIsButNotItsValues(t *testing.T) {
	t.Parallel()
	got := logging.RedactURL(presigned)
	if !strings.HasPrefix(got, "https://s3.example.com/b/k?") || strings.Contains(got, "SECRET") || strings.Contains(got, "AKID") {
		t.Error(got)
	}
	for in, want := range map[string]string{
		"https://user:SECRET@host/p":     "https://redacted@host/p",
		"https://host/p":                 "https://host/p",
		"https://host/p?access=SECRET":   "https://host/p?access=redacted",
		"https://host/%zz?access=SECRET": "https://host/%zz",
	} {
		if got := logging.RedactURL(in); got != want {
			t.Errorf("%s became %s", in, got)
		}
	}
}

func FuzzNoNeighbourHidesASecret(f *testing.F) {
	f.Add("before", "after")
	f.Add("eyJ", ".x")
	f.Add("kx_", "%3D")
	f.Fuzz(func(t *testing.T, before, after string) {
		for _, secret := range []string{presigned, token, jwt} {
			got := logging.Redact(before + " " + secret + " " + after)
			if strings.Contains(got, secret[len(secret)-20:]) && !strings.Contains(before+after, secret[len(secret)-20:]) {
				t.Errorf("%q", got)
			}
		}
	})
}

type packet struct{ Password string }

func TestSlogLinesReachZerologWithoutPackets(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	log := logging.NewSlog(zerolog.New(&b).Level(zerolog.InfoLevel))
	log.Debug("below the level")
	log.With("listener", "t1", "packet", packet{"SECRET"}).WithGroup("g").With("a", 1, "will", "SECRET").Warn("read failed",
		"error", errors.New("EOF"), "pk", packet{"SECRET"}, "other", packet{"SECRET"}, "n", 7, "ok", true, "f", 1.5,
		"took", time.Second, "at", time.Unix(0, 0), slog.Group("sub", "x", "y", "payload", "SECRET"), "names", []string{"p", "q"}, "u", uint64(3), "nothing", nil)
	if strings.Contains(b.String(), "SECRET") {
		t.Errorf("a secret: %s", b.String())
	}
	m := fields(t, &b)
	for k, want := range map[string]any{
		"level": "warn", "message": "read failed", "listener": "t1", "g.a": 1.0, "g.error": "EOF", "g.n": 7.0, "g.ok": true,
		"g.f": 1.5, "g.took": "1s", "g.at": "1970-01-01T00:00:00.000Z", "g.sub.x": "y", "g.other": "(logging_test.packet)", "g.u": 3.0,
	} {
		if m[k] != want {
			t.Errorf("%s is %v, want %v", k, m[k], want)
		}
	}
}

func BenchmarkALineWithoutSecrets(b *testing.B) {
	log, err := logging.New(logging.Config{Out: io.Discard})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		log.Info().Str("device", "abcdefghijkl").Int("seq", 5).Msg("heartbeat")
	}
}
