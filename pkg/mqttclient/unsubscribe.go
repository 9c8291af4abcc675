package mqttclient

import (
	"context"
	"fmt"

	paho "github.com/eclipse/paho.mqtt.golang"
)

// Unsubscribe ends subscriptions and waits for the broker's answer, after which
// it sends no more messages for them. What had arrived is still delivered.
func (c *Client) Unsubscribe(ctx context.Context, filters ...string) error {
	if _, err := c.wait(ctx, func() paho.Token { return c.paho.Unsubscribe(filters...) }); err != nil {
		return fmt.Errorf("unsubscribe: %w", err)
	}
	return nil
}
