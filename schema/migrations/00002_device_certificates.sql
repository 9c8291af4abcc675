-- +goose Up

-- Client certificates that devices were issued, for brokers that ask for one.
-- Rows stay until the certificate ends, also when the device is gone: the
-- revocation list is made from them.
CREATE TABLE device_certificates (
    serial    text PRIMARY KEY,                   -- hex, without leading zeros
    device_id text NOT NULL,
    issuer    text NOT NULL,                      -- key id of the CA, hex
    key_hash  bytea NOT NULL,                     -- of the device key it is for
    pem       text NOT NULL,
    issued_at timestamptz NOT NULL DEFAULT now(),
    not_after timestamptz NOT NULL
);
CREATE INDEX device_certificates_device ON device_certificates (device_id, issued_at DESC);

-- +goose Down
SELECT 1;
