package orchestrator

import (
	"context"
	"fmt"
	"time"

	"github.com/kernexhq/kernex/pkg/fleet"
)

// warningsLimit keeps /readyz quick; what cannot be said in time is not.
const warningsLimit = time.Second

// warnings is what /readyz says besides whether all is well.
func (o *Orchestrator) warnings() []string {
	ctx, cancel := context.WithTimeout(context.Background(), warningsLimit)
	defer cancel()
	t, err := o.db.TrustState(ctx)
	if err != nil {
		return nil // the check of Postgres says so
	}
	var list []string
	if t.Mode == fleet.TrustOpen {
		list = append(list, "trust mode open: bundles need no signature")
	}
	own := o.keys.commandText()
	switch {
	case t.NextCommandKey == "" || t.NextCommandKey == own && t.OtherCommandKeys == 0:
	case t.NextCommandKey == own:
		list = append(list, fmt.Sprintf("%d devices pin an older command key than this orchestrator has: they take no commands; give it back as the command key, with this one as the next", t.OtherCommandKeys))
	case t.NextCommandKey != o.keys.nextText():
		list = append(list, "the fleet goes over to a command key that this orchestrator does not have: start it with the same next command key as the others")
	default:
		list = append(list, fmt.Sprintf("command key change under way: %d devices have not taken the next one yet", t.OtherCommandKeys))
	}
	return list
}
