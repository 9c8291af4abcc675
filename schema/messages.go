package schema

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

var compiled = sync.OnceValues(compileMessages)

// MessageNames lists the messages that have a schema, such as "heartbeat".
func MessageNames() ([]string, error) {
	files, err := fs.Glob(Messages, "messages/*.json")
	for i, f := range files {
		files[i] = strings.TrimSuffix(path.Base(f), ".json")
	}
	return files, err
}

// ValidateMessage checks a JSON payload against the schema of the message
// called name. Tests hold everything that the code sends against it; a device
// written in another language can do the same with the same files.
func ValidateMessage(name string, payload []byte) error {
	all, err := compiled()
	if err != nil {
		return err
	}
	s, ok := all[name]
	if !ok {
		return fmt.Errorf("no schema for message %q", name)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(payload))
	if err != nil {
		return fmt.Errorf("decode %s message: %w", name, err)
	}
	return s.Validate(v)
}

func compileMessages() (map[string]*jsonschema.Schema, error) {
	names, err := MessageNames()
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	out := make(map[string]*jsonschema.Schema, len(names))
	for _, name := range names {
		b, err := Messages.ReadFile("messages/" + name + ".json")
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("parse schema %s: %w", name, err)
		}
		if err := c.AddResource(name+".json", doc); err != nil {
			return nil, fmt.Errorf("add schema %s: %w", name, err)
		}
		if out[name], err = c.Compile(name + ".json"); err != nil {
			return nil, fmt.Errorf("compile schema %s: %w", name, err)
		}
	}
	return out, nil
}
