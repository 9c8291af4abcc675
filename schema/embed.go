// Package schema embeds what other programs must agree on: the Postgres
// migrations (goose) and a JSON Schema, with examples, of every MQTT message.
package schema

import "embed"

// Migrations holds migrations/*.sql for goose. They only go forward and are
// safe on a live table: yesterday's binary runs on today's schema.
//
//go:embed migrations/*.sql
var Migrations embed.FS

// Messages holds messages/*.json: one JSON Schema (2020-12) for each message of
// the device protocol, each with examples.
//
//go:embed messages/*.json
var Messages embed.FS
