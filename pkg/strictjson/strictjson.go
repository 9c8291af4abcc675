// Package strictjson decodes JSON as a careful receiver does: one object, no
// duplicate keys, bounded depth, no trailing data. encoding/json accepts the
// first two silently, which lets two readers of one message disagree.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxDepth bounds nesting. Nothing that Kernex reads nests deeper than 6;
// 32 leaves room for hardware metadata.
const MaxDepth = 32

// Decode reads exactly one JSON object from data into v. Unknown keys are
// ignored unless strict is set.
func Decode(data []byte, v any, strict bool) error {
	if err := Check(data); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if strict {
		dec.DisallowUnknownFields()
	}
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("decode JSON: %w", err)
	}
	return nil
}

// Check reports the first rule that data breaks: it must be one JSON object,
// nested at most MaxDepth deep, no object with the same key twice, nothing
// after it.
func Check(data []byte) error {
	if t := bytes.TrimLeft(data, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return errors.New("not a JSON object")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	type frame struct {
		keys    map[string]struct{} // nil in an array
		wantKey bool
	}
	var stack []frame
	for {
		tok, err := dec.Token()
		if err != nil {
			return fmt.Errorf("parse JSON: %w", unexpected(err))
		}
		top := len(stack) - 1
		if key, ok := tok.(string); ok && top >= 0 && stack[top].wantKey {
			if _, dup := stack[top].keys[key]; dup {
				return fmt.Errorf("duplicate key %q", key)
			}
			stack[top].keys[key] = struct{}{}
			stack[top].wantKey = false
			continue
		}
		if top >= 0 && stack[top].keys != nil {
			stack[top].wantKey = true // a value, or a container that will have closed, ends this pair
		}
		switch tok {
		case json.Delim('{'):
			stack = append(stack, frame{keys: map[string]struct{}{}, wantKey: true})
		case json.Delim('['):
			stack = append(stack, frame{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
		}
		if len(stack) > MaxDepth {
			return fmt.Errorf("nested deeper than %d", MaxDepth)
		}
		if len(stack) == 0 {
			break
		}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("data after the JSON object")
	}
	return nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
