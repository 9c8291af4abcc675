package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/strictjson"
)

// decodeManifest parses without checking values.
func decodeManifest(data []byte) (*Manifest, error) {
	if len(data) > MaxManifestBytes {
		return nil, fleet.Errorf(fleet.CodeTooLarge, "%s is %d bytes, want at most %d", ManifestName, len(data), MaxManifestBytes)
	}
	if !utf8.Valid(data) {
		return nil, fleet.Errorf(fleet.CodeBadBundle, "%s is not UTF-8", ManifestName)
	}
	if err := strictjson.Check(data); err != nil {
		return nil, fleet.Errorf(fleet.CodeBadBundle, "%s: %v", ManifestName, err)
	}
	var m Manifest
	if err := decodeObject(data, "", &m); err != nil {
		return nil, fleet.Errorf(fleet.CodeBadBundle, "%s: %v", ManifestName, err)
	}
	return &m, nil
}

// decodeObject decodes one JSON object into the struct that v points to and
// refuses every key that is not exactly one of its JSON names. encoding/json's
// own check takes "Deploy" for "deploy", which another reader would not.
func decodeObject(data []byte, where string, v any) error {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil || raw == nil {
		return fmt.Errorf("%s: want an object, got %.40s", where, data)
	}
	known := map[string]bool{}
	for field := range reflect.TypeOf(v).Elem().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		known[name] = true
	}
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		if !known[key] {
			return fmt.Errorf("unknown key %q", dotted(where, key))
		}
	}
	err := json.Unmarshal(data, v)
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return fmt.Errorf("%s is a %s, want %s", dotted(where, wrongType.Field), wrongType.Value, wrongType.Type)
	}
	return err
}

func dotted(where, key string) string {
	if where == "" {
		return key
	}
	return where + "." + key
}
