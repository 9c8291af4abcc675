package up

import (
	"context"

	"github.com/kernexhq/kernex/broker"
	"github.com/kernexhq/kernex/orchestrator"
)

// transport gives the orchestrator the embedded broker.
type transport struct{ *broker.Broker }

func (t transport) Kick(id string) {
	t.Broker.Kick(id)
	t.Sweep(func(g broker.Grant) bool { return g.ID != id }) // the token of a monitor or service
}

func (t transport) Recheck(holds func(device bool, id string, epoch int64) bool) {
	t.Sweep(func(g broker.Grant) bool { return holds(g.Role == broker.RoleDevice, g.ID, g.Epoch) })
}

// authorizer gives the embedded broker the orchestrator's judgement.
type authorizer struct{ *orchestrator.Orchestrator }

func (a authorizer) Authorize(ctx context.Context, l broker.Login) (broker.Grant, error) {
	g, err := a.Orchestrator.Authorize(ctx, l.Username, l.ClientID, l.Password)
	if err != nil {
		return broker.Grant{}, err
	}
	return broker.Grant{Role: broker.Role(g.Role), ID: g.ID, Restricted: g.Restricted, Epoch: g.Epoch, Expires: g.Expires}, nil
}
