package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

// eventBatch is how many events one transaction numbers.
const eventBatch = 500

// events numbers what was committed and publishes it in that order, at least
// once: the position is stored after the broker took the batch.
func (m *Monitor) events(ctx context.Context) error {
	if m.generation == 0 {
		return nil
	}
	for {
		n, err := m.cfg.Store.NumberEvents(ctx, m.generation, eventBatch)
		if err != nil {
			return m.fencedOff(err)
		}
		more, err := m.publishEvents(ctx)
		if err != nil {
			return err
		}
		if n < eventBatch && !more {
			return nil
		}
	}
}

// fencedOff notes that another replica has taken over.
func (m *Monitor) fencedOff(err error) error {
	if fleet.ErrorCode(err) == fleet.CodeConflict {
		m.generation = 0
	}
	return err
}

func (m *Monitor) publishEvents(ctx context.Context) (more bool, err error) {
	list, upTo, err := m.cfg.Store.EventsAfter(ctx, m.published, nil, nil, eventBatch)
	if err != nil {
		return false, fmt.Errorf("read events: %w", err)
	}
	if upTo == m.published {
		return false, nil
	}
	for _, e := range list {
		if err := m.publish(ctx, m.cfg.Topics.FleetEvents(), protocol.NewCloudEvent(m.cfg.Fleet, e), false); err != nil {
			return false, err
		}
		m.note(e)
	}
	if err := m.cfg.Store.SetPublishedEvents(ctx, m.generation, upTo); err != nil {
		return false, m.fencedOff(err)
	}
	m.published = upTo
	return len(list) == eventBatch, nil
}

// note marks what an event has changed.
func (m *Monitor) note(e fleet.Event) {
	m.eventful = true
	if e.DeviceID != "" {
		m.devices[e.DeviceID] = true
	}
	if strings.HasPrefix(e.Type, "kernex.deployment.") {
		m.deploys[e.Subject] = true
	}
}

// changes publishes the devices and deployments that events have named, once
// each however many events there were.
func (m *Monitor) changes(ctx context.Context) error {
	if m.generation == 0 {
		return nil
	}
	if len(m.devices) > 0 {
		list, err := m.cfg.Store.FleetDevices(ctx, keys(m.devices))
		if err != nil {
			return fmt.Errorf("read devices: %w", err)
		}
		if err := m.publishDevices(ctx, list); err != nil {
			return err
		}
		for _, d := range list {
			delete(m.devices, d.DeviceID)
		}
		for id := range m.devices { // deleted
			if err := m.cfg.Publisher.Publish(ctx, m.cfg.Topics.FleetDevice(id), nil, 1, true); err != nil {
				return fmt.Errorf("clear the topic of device %s: %w", id, err)
			}
		}
		m.devices = map[string]bool{}
	}
	if len(m.deploys) > 0 {
		list, err := m.cfg.Store.FleetDeployments(ctx, keys(m.deploys))
		if err != nil {
			return fmt.Errorf("read deployments: %w", err)
		}
		if err := m.publishDeployments(ctx, list); err != nil {
			return err
		}
		m.deploys = map[string]bool{}
	}
	return m.walkOn(ctx)
}

func keys(set map[string]bool) []string {
	out := make([]string, 0, len(set))
	for k := range set {
		out = append(out, k)
	}
	return out
}

func (m *Monitor) publishDevices(ctx context.Context, list []protocol.FleetDevice) error {
	for _, d := range list {
		if err := m.publish(ctx, m.cfg.Topics.FleetDevice(d.DeviceID), d, true); err != nil {
			return err
		}
	}
	return nil
}

func (m *Monitor) publishDeployments(ctx context.Context, list []protocol.FleetDeployment) error {
	for _, d := range list {
		if err := m.publish(ctx, m.cfg.Topics.FleetDeployment(d.ID), d, true); err != nil {
			return err
		}
	}
	return nil
}

func (m *Monitor) publish(ctx context.Context, topic string, v any, retain bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message for %s: %w", topic, err)
	}
	if err := m.renew(ctx); err != nil {
		return err
	}
	if err := m.cfg.Publisher.Publish(ctx, topic, b, 1, retain); err != nil {
		return fmt.Errorf("publish to %s: %w", topic, err)
	}
	return nil
}
