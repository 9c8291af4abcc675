package update

import "github.com/kernexhq/kernex/pkg/fleet"

// row is one line of the machine's table.
type row struct {
	state   State
	durable string            // what is on disk before the state is entered
	crash   string            // what happens after a kill or a power cut in it
	resume  Action            // what a machine that finds itself in it does
	cancel  bool              // whether a cancel, or a newer deployment, still ends it
	report  fleet.TargetState // how the orchestrator is told
}

// table is the whole machine; docs/agent.md prints it. In APPLYING nobody can
// know what the interrupted deploy script did, so it is the one state that is
// not continued.
var table = []row{
	{Idle, "-", "nothing to do: the current release is started and reported", Wait, false, ""},
	{Accepted, "the command, before it is acknowledged", "continued", Fetch, true, fleet.TargetAccepted},
	{Downloading, "the record, then each part", "what is on disk is hashed, the rest fetched; an expired URL is renewed over MQTT", Fetch, true, fleet.TargetDownloading},
	{Verified, "the archive, then the record", "verified again: the record alone is never trusted", Unpack, true, fleet.TargetInstalling},
	{Extracted, "files and directories, staging renamed into releases/, then the record", "every file is hashed again, then applied; a release that is not whole is fetched again", Apply, true, fleet.TargetInstalling},
	{Applying, "deploy script started, attempt n", "outcome unknown: back to the release before", Return, false, fleet.TargetInstalling},
	{Switched, "old run stopped, current renamed, then the record", "the new run is started and checked", Check, false, fleet.TargetVerifying},
	{Health, "health check started, attempt n", "checked again, 3 times at most, then back", Check, false, fleet.TargetVerifying},
	{RollingBack, "cause; return started, attempt n", "repeated until done, 5 times at most", Return, false, fleet.TargetVerifying},
	{Committed, "active release, floor and result, in one record", "only the result is sent again", Wait, false, fleet.TargetSucceeded},
	{RolledBack, "current renamed back, old run started, then the result", "only the result is sent again", Wait, false, fleet.TargetRolledBack},
	{Failed, "the result", "only the result is sent again", Wait, false, fleet.TargetFailed},
	{Inconsistent, "the result, and the mark that stops further changes", "only an operator's rollback is accepted; heartbeats go on", Wait, false, fleet.TargetFailed},
}
