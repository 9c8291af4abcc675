package postgres

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// applyOther stores a result of a command that belongs to no target.
func (b *resultBatch) applyOther(ctx context.Context, device string, c resultCommand, r protocol.Result) (fleet.Code, error) {
	if !r.State.Final() {
		if c.Status != "open" {
			return "", nil
		}
		_, err := b.tx.ExecContext(ctx, `UPDATE commands SET received_at = now(), next_send_at = 'infinity' WHERE id = $1 AND received_at IS NULL`, r.Command)
		return "", translate(err, "confirm command")
	}
	var err error
	switch c.Type {
	case string(protocol.CommandConfigure):
		err = b.configured(ctx, device, c, r)
	case string(protocol.CommandCancel):
		err = b.cancelled(ctx, device, c, r)
	}
	switch {
	case err != nil:
		return "", err
	case c.Status == "done" && c.ResultState == string(r.State):
		return "", nil // a repeat: the ack was lost
	case c.Status != "open":
		return fleet.CodeLate, nil
	}
	return "", b.commandDone(ctx, r)
}

// configured stores the outcome of a configuration version, also of one that a
// newer version has replaced meanwhile.
func (b *resultBatch) configured(ctx context.Context, device string, c resultCommand, r protocol.Result) error {
	var body protocol.Configure
	if err := json.Unmarshal(c.Body, &body); err != nil {
		return fmt.Errorf("decode command %s: %w", r.Command, err)
	}
	outcome := "rejected"
	switch r.State {
	case fleet.TargetSucceeded:
		outcome = "applied"
	case fleet.TargetRolledBack:
		outcome = "reverted"
	case fleet.TargetCancelled:
		return nil
	case fleet.TargetRejected:
		// The command was too old, which says nothing of the configuration: the
		// next report opens another one.
		if code, _ := resultError(r); code == string(fleet.CodeStaleSeq) || code == string(fleet.CodeExpired) {
			return nil
		}
	}
	_, message := resultError(r)
	return configReported(ctx, b.tx, device, body.Config.Version, outcome, message)
}

// cancelled ends the target of a command that the device gave up or never had.
// If the device had taken it, the target ends by that command's own result.
func (b *resultBatch) cancelled(ctx context.Context, device string, c resultCommand, r protocol.Result) error {
	var body protocol.Cancel
	if err := json.Unmarshal(c.Body, &body); err != nil {
		return fmt.Errorf("decode command %s: %w", r.Command, err)
	}
	t, ok, err := b.target(ctx, body.Command)
	if err != nil || !ok || c.Status != "open" || t.State != fleet.TargetOffered {
		return err
	}
	if _, err := b.tx.ExecContext(ctx, `UPDATE deployment_targets SET state = 'cancelled', error_code = 'cancelled', finished_at = now(), updated_at = now()
		WHERE command_id = $1`, body.Command); err != nil {
		return translate(err, "cancel target")
	}
	if err := commandClose(ctx, b.tx, body.Command, "cancelled"); err != nil {
		return err
	}
	b.events.addAbout(fleet.EventDeploymentTarget, t.DeploymentID, device, map[string]any{"device_id": device, "state": fleet.TargetCancelled})
	return b.touch(ctx, device, t.DeploymentID)
}
