// Package testkit gives tests real parts: a database of their own on a private
// Postgres, an S3 store, a network that can be broken, a clock that can be set.
// It is imported by tests only.
package testkit
