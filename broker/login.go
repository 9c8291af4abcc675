package broker

import (
	"context"
	"strings"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// Role says what a connection may do; the table in acl.go says it exactly.
type Role string

// The roles. Each but RoleDevice is also the user name that logs in to it, so
// none of them is ever a device id.
const (
	RoleDevice  Role = "device"
	RoleEnroll  Role = "enroll"
	RoleClock   Role = "clock"
	RoleService Role = "service"
	RoleMonitor Role = "monitor"
)

// Login is what a client said in CONNECT.
type Login struct {
	Username string
	ClientID string
	Password []byte
	Remote   string // address and port of the peer
}

// Grant is the answer to a Login.
type Grant struct {
	Role       Role
	ID         string    // device id or token id
	Restricted bool      // a device that is pending or quarantined
	Epoch      int64     // the credential's auth epoch; Sweep compares it
	Expires    time.Time // when the connection is closed; zero: never
}

// Authorizer decides on logins of devices, service and monitor. It is not asked
// about enroll and clock: they carry no credential, and what they may do is
// fixed. An error with fleet.CodeUnavailable makes the client try again soon;
// every other one is a refusal.
type Authorizer interface {
	Authorize(ctx context.Context, l Login) (Grant, error)
}

// Ingest takes what devices publish, wills included. Receive is called on the
// client's read loop, so it never blocks; payload belongs to the callee.
type Ingest interface {
	Receive(topic string, payload []byte)
}

// clockPrefix starts every client id of a clock login.
const clockPrefix = "clock-"

// checkClientID checks the client id against the rule of its login. Unequal
// rules for equal names are how one client takes another's session over.
func checkClientID(username, clientID string) error {
	var ok bool
	switch Role(username) {
	case RoleEnroll:
		ok = protocol.ValidNonce(clientID)
	case RoleClock:
		rest, found := strings.CutPrefix(clientID, clockPrefix)
		ok = found && fleet.ValidDeviceID(rest)
	case RoleMonitor:
		// None is fine: tools such as mosquitto_sub leave it to the broker.
		ok = clientID == "" || validToolID(clientID)
	case RoleService:
		ok = validToolID(clientID)
	default:
		ok = fleet.ValidDeviceID(username) && username == clientID
	}
	if !ok {
		return fleet.Errorf(fleet.CodeInvalid, "client id %.64q is not one that user %.64q may have", clientID, username)
	}
	return nil
}

// validToolID accepts the client ids that MQTT tools make for themselves:
// printable ASCII without topic wildcards, at most 128 bytes.
func validToolID(s string) bool {
	if s == "" || len(s) > 128 || s == "inline" {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c > '~' || c == '#' || c == '+' || c == '$' {
			return false
		}
	}
	return true
}

// sessionID is the client id inside the broker. Only a device keeps its own:
// the others get a slash, which no device id has, so that nobody can take a
// device's session over.
func sessionID(g Grant, clientID string) string {
	switch g.Role {
	case RoleDevice:
		return g.ID
	case RoleService, RoleMonitor:
		return string(g.Role) + "/" + g.ID + "/" + clientID
	}
	return string(g.Role) + "/" + clientID
}

// fits reports whether an authorizer's grant belongs to the login: a bug there
// must not turn one identity into another.
func (g Grant) fits(l Login) bool {
	switch Role(l.Username) {
	case RoleService, RoleMonitor:
		return g.Role == Role(l.Username) && g.ID != "" && !strings.ContainsAny(g.ID, "/+#")
	}
	return g.Role == RoleDevice && g.ID == l.Username
}
