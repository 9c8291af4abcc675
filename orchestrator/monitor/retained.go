package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/kernexhq/kernex/pkg/protocol"
)

// walkBatch is how many devices are published again each SettleEvery: a fleet
// of 100,000 takes a little over three minutes and never floods a subscriber.
const walkBatch = 500

// refresh publishes everything retained again: time, totals and deployments at
// once, devices paced.
func (m *Monitor) refresh(ctx context.Context) error {
	if m.generation == 0 {
		return nil
	}
	if err := m.time(ctx); err != nil {
		return err
	}
	m.eventful = true
	if err := m.summary(ctx); err != nil {
		return err
	}
	list, err := m.cfg.Store.OpenDeployments(ctx, deploymentKeep)
	if err != nil {
		return fmt.Errorf("read deployments: %w", err)
	}
	start := ""
	m.walk = &start
	return m.publishDeployments(ctx, list)
}

// walkOn publishes the next devices of a refresh.
func (m *Monitor) walkOn(ctx context.Context) error {
	if m.walk == nil {
		return nil
	}
	list, err := m.cfg.Store.FleetDevicesAfter(ctx, *m.walk, walkBatch)
	if err != nil {
		return fmt.Errorf("read devices: %w", err)
	}
	if err := m.publishDevices(ctx, list); err != nil {
		return err
	}
	if len(list) < walkBatch {
		m.walk = nil
		return nil
	}
	m.walk = &list[len(list)-1].DeviceID
	return nil
}

// time publishes the clock, for devices that have none. QoS 0: the next one is
// better than a late one.
func (m *Monitor) time(ctx context.Context) error {
	if m.generation == 0 {
		return nil
	}
	b, err := json.Marshal(protocol.Time{Time: time.Now().Unix()})
	if err != nil {
		return fmt.Errorf("encode the time: %w", err)
	}
	if err := m.cfg.Publisher.Publish(ctx, m.cfg.Topics.Time(), b, 0, true); err != nil {
		return fmt.Errorf("publish the time: %w", err)
	}
	return nil
}

// summary publishes the totals if anything has happened.
func (m *Monitor) summary(ctx context.Context) error {
	if m.generation == 0 || !m.eventful {
		return nil
	}
	s, err := m.cfg.Store.FleetSummary(ctx)
	if err != nil {
		return fmt.Errorf("read the summary: %w", err)
	}
	if err := m.publish(ctx, m.cfg.Topics.FleetSummary(), s, true); err != nil {
		return err
	}
	m.eventful = false
	return nil
}
