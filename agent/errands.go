package agent

import (
	"context"

	"github.com/kernexhq/kernex/agent/link"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// errands does what commands ask for that leaves releases alone. It implements
// update.Errands.
type errands struct{ *Agent }

// Do implements update.Errands.
func (e errands) Do(c protocol.Command) error {
	switch c.Type {
	case protocol.CommandRestart:
		return e.programs.supervisor.Restart()
	case protocol.CommandTrust:
		if err := e.cache.trust(*c.Trust); err != nil {
			return err
		}
		now := e.cache.get()
		e.log.Info().Str("trust_mode", now.TrustMode).Strs("release_keys", now.releaseKeyIDs()).Str("command_key", now.CommandKey).Msg("what is trusted has changed")
		return nil
	case protocol.CommandLogs:
		e.shipper.Ask(*c.Logs)
		return nil
	}
	return fleet.Errorf(fleet.CodeUnsupported, "this agent does not know %s", c.Type)
}

// sendLog publishes a batch of log lines; it is the shipper's to count what is
// lost.
func (a *Agent) sendLog(ctx context.Context, payload []byte) error {
	l := a.link.Load()
	if l == nil {
		return link.ErrOffline
	}
	ctx, cancel := context.WithTimeout(ctx, publishWait)
	defer cancel()
	return l.Publish(ctx, protocol.KindLog, payload, 1)
}
