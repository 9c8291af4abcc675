-- +goose Up

-- Lines that devices sent because somebody asked. Like heartbeats: a partition a
-- day, dropped whole when it is a week old. The day is that of arrival, because
-- a device's own clock may say anything.
CREATE SEQUENCE device_logs_id;
CREATE TABLE device_logs (
    id          bigint NOT NULL DEFAULT nextval('device_logs_id'),
    device_id   text NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    at          timestamptz NOT NULL,             -- by the device's clock
    level       text NOT NULL,
    source      text NOT NULL,
    message     text NOT NULL
) PARTITION BY RANGE (received_at);
CREATE INDEX device_logs_device ON device_logs (device_id, id);
CREATE TABLE device_logs_default PARTITION OF device_logs DEFAULT;

-- +goose Down
SELECT 1;
