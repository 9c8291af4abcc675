// Package attack attacks a whole live system, the broker and the orchestrator
// on real Postgres and a real object store, over raw sockets: it holds tests
// only. docs/security.md names them.
package attack
