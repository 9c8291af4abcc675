package agent

import (
	"errors"
	"fmt"

	"github.com/kernexhq/kernex/agent/update"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// peer is what the link talks to.
type peer struct{ *Agent }

// NextSession implements link.Peer: the number is durable before it is used, so
// that it never comes twice.
func (p *peer) NextSession() (int64, error) {
	var session int64
	if _, err := p.journal.Read("session", &session); err != nil {
		return 0, err
	}
	session++
	return session, p.journal.Write(map[string]any{"session": session})
}

// Up implements link.Peer.
func (p *peer) Up(session int64, restricted bool) {
	p.cert.reconnected()
	p.trial.up()
	p.reports.up(session, restricted)
}

// Down implements link.Peer.
func (p *peer) Down() {
	p.trial.down()
	p.reports.down()
}

// Message implements link.Peer. Commands are journaled here, on the link's own
// goroutine: the next message waits.
func (p *peer) Message(kind protocol.Kind, payload []byte) {
	switch kind {
	case protocol.KindCommand:
		if err := p.command(payload); err != nil {
			p.log.Warn().Err(err).Msg("command refused")
		}
	case protocol.KindAck:
		var ack protocol.Ack
		if err := protocol.Decode(kind, payload, &ack); err != nil {
			p.log.Warn().Err(err).Msg("ack refused")
			return
		}
		if err := p.machine.Acked(ack.Results); err != nil {
			p.log.Error().Err(err).Msg("an ack could not be recorded")
		}
		p.cert.serverTime(ack.Time)
		if ack.Certificate != "" {
			if err := p.takeCertificate(ack.Certificate); err != nil {
				p.log.Error().Err(err).Msg("the new client certificate is not used")
			}
		}
		p.reports.acked(ack)
	}
}

// command takes what the pinned key has signed for this device. Everything else
// is dropped: whose it is cannot be known, so nobody is told.
func (p *peer) command(payload []byte) error {
	c, err := p.cache.openCommand(payload)
	device := p.cache.get().DeviceID
	if err != nil {
		if fleet.ErrorCode(err) == fleet.CodeBadSignature || c.ID == "" || c.Seq <= 0 || c.Device != device {
			return err
		}
		p.noteRejected(c, err)
		return p.machine.Refuse(c, err)
	}
	if c.Device != device {
		return fleet.Errorf(fleet.CodeWrongDevice, "command %s is for device %s", c.ID, c.Device)
	}
	err = p.machine.Take(c)
	if errors.Is(err, update.ErrJournal) {
		return fmt.Errorf("command %s will come again: %w", c.ID, err)
	}
	return err
}

// noteRejected makes a configuration that cannot be read show in the state
// report too.
func (p *peer) noteRejected(c protocol.Command, reason error) {
	if c.Type != protocol.CommandConfigure || c.Configure == nil {
		return
	}
	if err := p.reports.reject(c.Configure.Config.Version, reason); err != nil {
		p.log.Error().Err(err).Msg("a rejected configuration could not be recorded")
	}
}
