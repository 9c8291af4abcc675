-- +goose Up

-- The public keys that sign bundles, in the order in which they were added: each
-- but the first is signed by one before it, so that a device that knows any of
-- them can follow. Rows are never deleted: a revoked key must not come back, and
-- one row is enough for trust mode required.
CREATE TABLE release_keys (
    id          text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{16}$'),
    number      bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    public_key  text NOT NULL,                    -- one line, minisign's form
    file        text NOT NULL,                    -- the exact bytes that signature is over
    signature   text NOT NULL DEFAULT '',         -- minisign; '' for the first key
    signed_by   text NOT NULL DEFAULT '',
    description text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL DEFAULT now(),
    created_by  text NOT NULL DEFAULT '',
    revoked_at  timestamptz,
    revoked_by  text NOT NULL DEFAULT ''
);

-- The signature that signed_by is about: it goes to devices with the command,
-- so that a release that is signed later, or again, needs no other archive.
ALTER TABLE bundles ADD COLUMN signature text NOT NULL DEFAULT '';

-- What devices say that they have pinned; '' until they say so.
ALTER TABLE device_status ADD COLUMN trust_mode text NOT NULL DEFAULT '';
ALTER TABLE device_status ADD COLUMN release_keys text NOT NULL DEFAULT ''; -- ids, sorted, by spaces
ALTER TABLE device_status ADD COLUMN command_key text NOT NULL DEFAULT '';

ALTER TABLE commands DROP CONSTRAINT commands_type_check;
ALTER TABLE commands ADD CONSTRAINT commands_type_check
    CHECK (type IN ('deploy', 'rollback', 'configure', 'cancel', 'restart', 'logs', 'rotate_key', 'trust'));

-- +goose Down
SELECT 1;
