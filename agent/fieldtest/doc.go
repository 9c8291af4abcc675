// Package fieldtest is the agent as a process of its own where devices are: on
// bad links, and with its appetite measured.
//
// The link zoo puts the agent into a network namespace whose only way out is a
// cable that loses, delays and holds back packets. `make test` has its short
// form, with small bundles; `make link-zoo` downloads 2 MiB over each link.
// `make bench-agent` prints what the agent needs beside docs/numbers.md's goals.
package fieldtest
