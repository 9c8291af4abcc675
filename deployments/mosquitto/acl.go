// Package mosquitto makes Mosquitto's access lists from the policy that
// kernex-broker has built in, so that there is one of it. README.md says how a
// Mosquitto is set up for a fleet.
package mosquitto

import (
	"strings"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// list is the access list of one listener: the roles that log in there.
type list struct {
	about string
	roles []broker.Role
	own   string // what {id} is on that listener; "" where roles are users with a password
}

var lists = map[string]list{
	"enroll.acl": {
		about: "New devices: anyone, whose client id is the nonce.",
		roles: []broker.Role{broker.RoleEnroll}, own: "%c",
	},
	"devices.acl": {
		about: "Devices: the user name is the CN of the client certificate, the device id.",
		roles: []broker.Role{broker.RoleDevice}, own: "%u",
	},
	"services.acl": {
		about: "Orchestrators and monitoring tools, by the names in the password file.",
		roles: []broker.Role{broker.RoleService, broker.RoleMonitor},
	},
}

// Files returns the access lists under a topic root ("" is the default), by file
// name. Devices without a clock need no list: a certificate needs no time.
func Files(root string) map[string]string {
	topics := protocol.NewTopics(root)
	out := make(map[string]string, len(lists))
	for name, l := range lists {
		text := "# " + l.about + "\n# Made by: go run ./deployments/mosquitto/gen\n"
		for _, role := range l.roles {
			text += "\n" + l.section(topics.Root, role)
		}
		out[name] = text
	}
	return out
}

// section is what one role may do.
func (l list) section(root string, role broker.Role) string {
	kind, text := "pattern", ""
	if l.own == "" {
		kind, text = "topic", "user "+string(role)+"\n"
	}
	for _, r := range broker.Rules() {
		if r.Role != role {
			continue
		}
		access := "read"
		if r.Write {
			access = "write"
		}
		text += kind + " " + access + " " + root + "/" + strings.ReplaceAll(r.Pattern, "{id}", l.own) + "\n"
	}
	return text
}
