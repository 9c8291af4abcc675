package fleet

import (
	"encoding/json"
	"fmt"
	"regexp"
	"sort"
	"strings"
)

// Labels are an operator's key-value pairs on a device.
type Labels map[string]string

var (
	labelKey   = regexp.MustCompile(`^[a-z0-9A-Z]([a-z0-9A-Z._/-]{0,61}[a-z0-9A-Z])?$`)
	labelValue = regexp.MustCompile(`^([a-z0-9A-Z]([a-z0-9A-Z._-]{0,61}[a-z0-9A-Z])?)?$`)
)

// MaxLabels bounds the labels of one device.
const MaxLabels = 64

// Validate checks count, keys and values: letters, digits and . _ - inside (and
// / in keys), at most 63 characters, so that they stand in a selector unquoted.
func (l Labels) Validate() error {
	if len(l) > MaxLabels {
		return Errorf(CodeInvalid, "%d labels, at most %d are allowed", len(l), MaxLabels)
	}
	for k, v := range l {
		if !labelKey.MatchString(k) {
			return Errorf(CodeInvalid, "label key %q: use 1-63 letters, digits, '.', '_', '/' or '-'", k)
		}
		if !labelValue.MatchString(v) {
			return Errorf(CodeInvalid, "label %s=%q: use at most 63 letters, digits, '.', '_' or '-'", k, v)
		}
	}
	return nil
}

// Requirement is one comma-separated part of a selector.
type Requirement struct {
	Key   string
	Value string
	Not   bool // key!=value; also true of devices without the key
}

// Selector chooses devices by label; every requirement must hold. The empty
// selector chooses every device.
type Selector []Requirement

// ParseSelector reads "site=berlin,ring!=canary".
func ParseSelector(s string) (Selector, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	var sel Selector
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		key, value, ok := strings.Cut(part, "=")
		r := Requirement{Key: strings.TrimSuffix(key, "!"), Value: strings.TrimPrefix(value, "="), Not: strings.HasSuffix(key, "!")}
		if !ok {
			return nil, Errorf(CodeInvalid, "selector %q: %q is neither key=value nor key!=value", s, part)
		}
		if err := (Labels{r.Key: r.Value}).Validate(); err != nil {
			return nil, Errorf(CodeInvalid, "selector %q: %s", s, ErrorMessage(err))
		}
		sel = append(sel, r)
	}
	if len(sel) > MaxLabels {
		return nil, Errorf(CodeInvalid, "selector has %d requirements, at most %d are allowed", len(sel), MaxLabels)
	}
	return sel, nil
}

// Matches reports whether l satisfies every requirement.
func (s Selector) Matches(l Labels) bool {
	for _, r := range s {
		v, ok := l[r.Key]
		if (ok && v == r.Value) == r.Not {
			return false
		}
	}
	return true
}

// String returns the selector in ParseSelector's form.
func (s Selector) String() string {
	parts := make([]string, len(s))
	for i, r := range s {
		op := "="
		if r.Not {
			op = "!="
		}
		parts[i] = r.Key + op + r.Value
	}
	return strings.Join(parts, ",")
}

// String returns the labels sorted, as "a=1,b=2".
func (l Labels) String() string {
	parts := make([]string, 0, len(l))
	for k, v := range l {
		parts = append(parts, k+"="+v)
	}
	sort.Strings(parts)
	return strings.Join(parts, ",")
}

// MaxMetadata bounds hardware metadata and configuration metadata, in bytes of
// JSON: both travel in one MQTT message.
const MaxMetadata = 8 << 10

func validateMetadata(name string, m map[string]any) error {
	b, err := json.Marshal(m)
	if err != nil {
		return Errorf(CodeInvalid, "%s is not JSON: %v", name, err)
	}
	if len(b) > MaxMetadata {
		return Errorf(CodeTooLarge, "%s is %d bytes of JSON, at most %d are allowed", name, len(b), MaxMetadata)
	}
	for k := range m {
		if k == "" || len(k) > 63 || strings.ContainsFunc(k, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return Errorf(CodeInvalid, "%s key %q: use 1-63 printable characters", name, k)
		}
		if hasNUL(m[k]) {
			return Errorf(CodeInvalid, "%s key %q: the value holds a NUL character", name, k)
		}
	}
	return nil
}

// hasNUL finds the one character that JSON allows and Postgres's jsonb refuses.
func hasNUL(v any) bool { return strings.Contains(fmt.Sprint(v), "\x00") }
