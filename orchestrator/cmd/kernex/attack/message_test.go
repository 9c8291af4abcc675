package attack

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// messages are payloads on the attacker's own topics. Those that are refused
// unread are counted; a result gets an acknowledgement that says why it is not
// accepted.
func (x *target) messages(*testing.T) []attack {
	deep := `{"session":2,"seq":1,"x":` + strings.Repeat("[", 1500) + strings.Repeat("]", 1500) + `}`
	var list []attack
	for kind, payloads := range map[protocol.Kind]map[string]string{
		protocol.KindHeartbeat: {
			"empty": "", "no object": `[]`, "no JSON": "hello", "NaN": `{"session":2,"seq":1,"cpu_pct":NaN}`, "duplicate keys": `{"session":2,"session":3,"seq":1}`,
			"trailing data": `{"session":2,"seq":1}{}`, "deep": deep, "session 0": `{"session":0,"seq":1}`, "session below 0": `{"session":-1,"seq":1}`, "seq 0": `{"session":2,"seq":0}`,
			"session beyond 64 bits": `{"session":99999999999999999999,"seq":1}`, "a string for a number": `{"session":"2","seq":1}`, "cpu 1e300": `{"session":2,"seq":1,"cpu_pct":1e300}`,
			"unknown status": `{"session":2,"seq":1,"status":"fine"}`, "NUL in the version": `{"session":2,"seq":1,"agent_version":"a\u0000"}`,
			"a version of 64 bytes": `{"session":2,"seq":1,"agent_version":"` + strings.Repeat("v", 64) + `"}`, "negative uptime": `{"session":2,"seq":1,"uptime_s":-1}`,
		},
		protocol.KindState: {
			"empty": "", "session 0": `{"session":0,"status":"healthy"}`, "unknown status": `{"session":2,"status":"fine"}`, "duplicate keys": `{"session":2,"session":2,"status":"healthy"}`,
			"unknown outcome": `{"session":2,"status":"healthy","config_outcome":"maybe"}`, "NUL in hardware": `{"session":2,"status":"healthy","hardware":{"a":"\u0000"}}`, "NUL in boot": `{"session":2,"status":"healthy","boot":"\u0000"}`,
			"hardware of 9 KiB": `{"session":2,"status":"healthy","hardware":{"a":"` + strings.Repeat("x", 9<<10) + `"}}`, "negative seq": `{"session":2,"status":"healthy","highest_seq":-1}`,
		},
		protocol.KindResult: {
			"no command": `{"state":"succeeded"}`, "state pending": `{"command":"OPEN","state":"pending"}`, "state superseded": `{"command":"OPEN","state":"superseded"}`, "unknown state": `{"command":"OPEN","state":"won"}`,
			"NUL in the output": `{"command":"OPEN","state":"failed","output":"\u0000"}`, "negative attempt": `{"command":"OPEN","state":"failed","attempt":-1}`, "control character in the step": `{"command":"OPEN","state":"failed","step":"\u001b[2J"}`,
			"duplicate keys": `{"command":"OPEN","command":"OPEN","state":"failed"}`,
		},
		protocol.KindRequest:  {"unknown want": `{"want":"everything"}`, "no want": `{}`, "a list": `["url"]`},
		protocol.KindPresence: {"session 0": `{"online":false,"session":0}`, "empty": ``},
		protocol.KindLog:      {"no object": `"line"`, "duplicate keys": `{"lines":[],"lines":[]}`, "trailing data": `{"lines":[]}x`},
	} {
		for name, payload := range payloads {
			list = append(list, attack{name: string(kind) + ": " + name, run: func(t *testing.T) {
				before := x.metric(t, "kernex_ingest_dropped_total", "kind="+string(kind), "reason=invalid")
				x.say(t, kind, strings.ReplaceAll(payload, "OPEN", x.open))
				eventually(t, func() bool {
					return x.metric(t, "kernex_ingest_dropped_total", "kind="+string(kind), "reason=invalid") == before+1
				})
			}})
		}
	}
	for name, c := range map[string]struct {
		command string
		code    fleet.Code
	}{
		"an unknown command":                    {"cmd-unknown", fleet.CodeUnknownCommand},
		"SQL for a command":                     {"' OR '1'='1", fleet.CodeUnknownCommand},
		"another device's open command":         {x.open, fleet.CodeNoTarget},
		"another device's finished command":     {x.done, fleet.CodeNoTarget},
		"a command's id in upper case":          {strings.ToUpper(x.open), fleet.CodeUnknownCommand},
		"a command's id with a line feed first": {" " + x.open, fleet.CodeUnknownCommand},
	} {
		list = append(list, attack{name: "result: " + name, run: func(t *testing.T) {
			x.malloryLine.t = t
			x.say(t, protocol.KindResult, encode(t, protocol.Result{Command: c.command, Attempt: 1, State: fleet.TargetSucceeded}))
			if a := x.malloryLine.ack(x.mallory.id, c.command); a.Accepted || a.Code != c.code {
				t.Errorf("ack %+v, want code %s", a, c.code)
			}
		}})
	}
	for name, send := range map[string]func(t *testing.T){
		"progress of another device's command": func(t *testing.T) {
			x.say(t, protocol.KindResult, encode(t, protocol.Result{Command: x.open, Attempt: 1, State: fleet.TargetAccepted}))
		},
		"a URL for another device's command": func(t *testing.T) {
			x.say(t, protocol.KindRequest, encode(t, protocol.Request{Want: protocol.WantURL, Command: x.open}))
		},
		"a certificate where there is no CA": func(t *testing.T) {
			x.say(t, protocol.KindRequest, encode(t, protocol.Request{Want: protocol.WantCertificate}))
		},
		"device_id of another device in the payload": func(t *testing.T) {
			x.say(t, protocol.KindPresence, fmt.Sprintf(`{"online":true,"session":7,"device_id":%q}`, x.victim.id))
			x.say(t, protocol.KindState, fmt.Sprintf(`{"session":1,"boot":"boot-1","state_rev":0,"status":"error","device_id":%q}`, x.victim.id))
		},
		"an older state of the same session": func(t *testing.T) {
			old := looptest.State(1)
			old.StateRev, old.Status = 0, "error"
			x.say(t, protocol.KindState, encode(t, old))
		},
	} {
		list = append(list, attack{name: "ignored: " + name, run: func(t *testing.T) {
			x.malloryLine.t = t
			send(t)
			// What comes after it in the same queue is answered, so it was handled.
			after := "cmd-after-" + strings.ReplaceAll(name, " ", "-")[:10]
			x.say(t, protocol.KindResult, encode(t, protocol.Result{Command: after, Attempt: 1, State: fleet.TargetFailed}))
			x.malloryLine.ack(x.mallory.id, after)
		}})
	}
	return list
}

// say publishes on the attacker's own topic.
func (x *target) say(t *testing.T, k protocol.Kind, payload string) {
	t.Helper()
	x.malloryLine.t = t
	_ = x.malloryLine.SetDeadline(time.Now().Add(30 * time.Second))
	x.malloryLine.publish(topics.Device(x.mallory.id, k), payload, 1)
}

func encode(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
