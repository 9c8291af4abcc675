package schema_test

import (
	"encoding/json"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/kernexhq/kernex/pkg/protocol"
	"github.com/kernexhq/kernex/schema"
)

// messages pairs each schema with the Go type that the code sends or reads.
var messages = map[string]any{
	"heartbeat": protocol.Heartbeat{}, "state": protocol.State{}, "result": protocol.Result{}, "log": protocol.Log{},
	"request": protocol.Request{}, "presence": protocol.Presence{}, "command": protocol.Command{}, "ack": protocol.Ack{},
	"enroll-request": protocol.EnrollRequest{}, "enroll-reply": protocol.EnrollReply{}, "time": protocol.Time{},
	"fleet-device": protocol.FleetDevice{}, "fleet-deployment": protocol.FleetDeployment{}, "fleet-summary": protocol.FleetSummary{},
	"fleet-event": protocol.CloudEvent{},
}

func TestEverySchemaHasExamplesThatFitItAndItsGoType(t *testing.T) {
	t.Parallel()
	names, err := schema.MessageNames()
	if err != nil || len(names) != len(messages) {
		t.Fatalf("schemas %v (%v), want the %d of the Go types", names, err, len(messages))
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw, err := schema.Messages.ReadFile("messages/" + name + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var doc struct {
				Examples   []json.RawMessage
				Properties map[string]any
				Required   []string
			}
			if err := json.Unmarshal(raw, &doc); err != nil {
				t.Fatal(err)
			}
			if len(doc.Examples) == 0 {
				t.Fatal("no example")
			}
			for _, ex := range doc.Examples {
				if err := schema.ValidateMessage(name, ex); err != nil {
					t.Errorf("example %s: %v", ex, err)
				}
				v := reflect.New(reflect.TypeOf(messages[name]))
				dec := json.NewDecoder(strings.NewReader(string(ex)))
				dec.DisallowUnknownFields()
				if err := dec.Decode(v.Interface()); err != nil {
					t.Errorf("example %s does not decode: %v", ex, err)
				}
			}
			var props []string
			for p := range doc.Properties {
				props = append(props, p)
			}
			sort.Strings(props)
			if fields := jsonFields(messages[name]); !slices.Equal(props, fields) {
				t.Errorf("schema has %v, the Go type %v", props, fields)
			}
		})
	}
}

func TestASchemaRefusesAMessageThatBreaksIt(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]string{
		"heartbeat": `{"session":0,"seq":1,"state_rev":0}`,
		"result":    `{"command":"c","attempt":1,"state":"expired"}`,
		"presence":  `{"online":false}`,
		"time":      `{"time":"now"}`,
	} {
		if schema.ValidateMessage(name, []byte(bad)) == nil {
			t.Errorf("%s accepts %s", name, bad)
		}
	}
}

func jsonFields(v any) []string {
	var out []string
	for i := range reflect.TypeOf(v).NumField() {
		name, _, _ := strings.Cut(reflect.TypeOf(v).Field(i).Tag.Get("json"), ",")
		out = append(out, name)
	}
	sort.Strings(out)
	return out
}
