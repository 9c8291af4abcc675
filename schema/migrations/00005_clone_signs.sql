-- +goose Up

-- What tells a copy of a device from the device: when the stored session was
-- born, and the last birth that could not be the device's own. Two of those
-- within a day quarantine it.
ALTER TABLE device_status ADD COLUMN session_at timestamptz;
ALTER TABLE device_status ADD COLUMN clone_sign text NOT NULL DEFAULT ''; -- session and boot
ALTER TABLE device_status ADD COLUMN clone_sign_at timestamptz;

-- +goose Down
SELECT 1;
