// Package fleet holds Kernex's domain: devices, bundles, deployments, their
// targets, configuration and events, with the transition tables that say which
// change is legal, and the one error type every program uses.
//
// It imports the standard library only and does no I/O, so every program and
// every test can use it.
package fleet
