// Package link is the agent's side of MQTT: enrolment, and one connection after
// the other for as long as the agent runs.
//
// Each connection has its own session number, will and token, which is why the
// client never reconnects by itself. The link keeps no messages: what must not
// be lost is in the journal and is sent again by whoever owns it.
package link
