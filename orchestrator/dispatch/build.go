package dispatch

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// build makes the protocol's command of a stored one, without a URL.
func build(c fleet.Command) (protocol.Command, error) {
	cmd := protocol.Command{
		ID: c.ID, Device: c.DeviceID, Seq: c.Seq, ClosedThrough: c.ClosedThrough, Type: protocol.CommandType(c.Type),
		IssuedAt: c.IssuedAt.Unix(), NotAfter: c.NotAfter.Unix(),
	}
	var body any
	switch cmd.Type {
	case protocol.CommandDeploy, protocol.CommandRollback:
		return deploy(cmd, c)
	case protocol.CommandConfigure:
		cmd.Configure = &protocol.Configure{}
		body = cmd.Configure
	case protocol.CommandCancel:
		cmd.Cancel = &protocol.Cancel{}
		body = cmd.Cancel
	case protocol.CommandTrust:
		cmd.Trust = &protocol.Trust{}
		body = cmd.Trust
	case protocol.CommandLogs:
		cmd.Logs = &protocol.Logs{}
		body = cmd.Logs
	default:
		return cmd, nil
	}
	if err := json.Unmarshal(c.Body, body); err != nil {
		return cmd, fmt.Errorf("decode body: %w", err)
	}
	return cmd, nil
}

func deploy(cmd protocol.Command, c fleet.Command) (protocol.Command, error) {
	var body fleet.DeployBody
	if err := json.Unmarshal(c.Body, &body); err != nil {
		return cmd, fmt.Errorf("decode body: %w", err)
	}
	b := c.Bundle
	cmd.Deploy = &protocol.Deploy{
		Deployment: body.Deployment, StepTimeoutS: body.StepTimeoutS, MaxRate: body.MaxRate,
		Bundle: protocol.BundleRef{
			Name: b.Name, Version: b.Version, Release: b.Release, Checksum: b.Checksum, Size: b.Size,
			Expanded: b.Expanded, Files: b.Files, PartSize: b.PartSize, Signature: b.Signature,
		},
	}
	for _, p := range b.Parts {
		sum, err := hex.DecodeString(p)
		if err != nil {
			return cmd, fmt.Errorf("part digest of bundle %s: %w", b.ID, err)
		}
		cmd.Deploy.Bundle.Parts = append(cmd.Deploy.Bundle.Parts, base64.RawURLEncoding.EncodeToString(sum))
	}
	return cmd, nil
}
