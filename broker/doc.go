// Package broker is the embedded MQTT broker: mochi-mqtt behind a listener, one
// hook and an access table of our own.
//
// It carries messages and keeps no truth: every session is clean, nothing is
// stored, and a message that is lost costs time only (the device or the
// orchestrator sends it again). What it must never do is let one client act as
// another, or let one client cost the others theirs.
//
// Access is denied unless acl.go's table allows it. The table is checked on
// publish, on subscribe, on delivery and for wills.
package broker
