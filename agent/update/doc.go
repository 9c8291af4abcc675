// Package update is the agent's update machine: it takes signed commands,
// journals them, and moves the device from one release to the next so that
// after a kill or a power cut at any point it ends on one whole release and
// knows which.
//
// The rule is: persist the next state, then act. The table in table.go says for
// each state what was made durable before it was entered and what happens when
// the agent starts in it; Next is that table with its bounds, a pure function.
// The other way around, everything that acts is behind the interfaces of
// parts.go.
package update
