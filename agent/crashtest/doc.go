// Package crashtest proves the agent's invariants (docs/agent.md, I1 to I12)
// from the outside: the device's tree and what a server has heard. The agent is
// cut from its power, failed and killed at every point of five deployments, and
// again while it recovers.
//
// The tests are a sample of it; `make crash-test` visits every point.
package crashtest
