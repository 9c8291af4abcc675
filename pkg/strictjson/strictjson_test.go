package strictjson

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestCheckRefusesWhatTwoReadersCouldReadDifferently(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ in, want string }{
		"empty":             {"", "not a JSON object"},
		"array":             {"[]", "not a JSON object"},
		"duplicate key":     {`{"a":1,"a":2}`, `duplicate key "a"`},
		"nested duplicate":  {`{"a":{"b":1,"c":[{"d":1,"d":2}]}}`, `duplicate key "d"`},
		"trailing":          {`{} {}`, "data after"},
		"trailing garbage":  {`{}x`, "data after"},
		"NaN":               {`{"a":NaN}`, "parse JSON"},
		"truncated":         {`{"a":[1,`, "unexpected EOF"},
		"10,000 deep":       {`{"a":` + strings.Repeat("[", 10000), "nested deeper"},
		"value looks a key": {`{"a":"a","b":"a","a":1}`, `duplicate key "a"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := Check([]byte(tc.in))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("Check(%.40q) = %v, want %q", tc.in, err, tc.want)
			}
		})
	}
}

func TestDecodeIgnoresUnknownKeysUnlessStrict(t *testing.T) {
	t.Parallel()
	var v struct{ A int }
	if err := Decode([]byte(`{"a":1,"later":{"x":["y",{"z":1}]}}`), &v, false); err != nil || v.A != 1 {
		t.Fatalf("lenient: %v, %+v", err, v)
	}
	if err := Decode([]byte(`{"a":1,"later":2}`), &v, true); err == nil || !strings.Contains(err.Error(), "later") {
		t.Fatalf("strict: %v, want the unknown key named", err)
	}
}

func FuzzCheckAcceptsOnlyWhatEncodingJSONAccepts(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[1,{"b":null}]}`, `{"a":1,"a":2}`, `{"a":"\u0000"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if Check(data) == nil && !json.Valid(data) {
			t.Fatalf("accepted invalid JSON %q", data)
		}
	})
}
