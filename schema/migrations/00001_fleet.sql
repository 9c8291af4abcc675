-- +goose Up

-- Small facts about this installation: the fleet name (the JWT's aud), the
-- engine's last tick.
CREATE TABLE settings (
    name       text PRIMARY KEY,
    value      jsonb NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_tokens (
    id           text PRIMARY KEY,
    name         text NOT NULL,
    token_hash   bytea NOT NULL UNIQUE,          -- sha256 of the token; the token itself is never stored
    role         text NOT NULL CHECK (role IN ('viewer', 'operator', 'admin', 'monitor', 'service')),
    selector     text NOT NULL DEFAULT '',       -- label scope; '' is the whole fleet
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text NOT NULL DEFAULT '',
    expires_at   timestamptz,
    last_used_at timestamptz,
    revoked_at   timestamptz
);

CREATE TABLE enrollment_tokens (
    id           text PRIMARY KEY,
    token_hash   bytea NOT NULL UNIQUE,
    description  text NOT NULL DEFAULT '',
    labels       jsonb NOT NULL DEFAULT '{}',
    serials      text[] NOT NULL DEFAULT '{}',
    max_uses     integer NOT NULL DEFAULT 1 CHECK (max_uses >= 0),  -- 0 is without a limit
    uses         integer NOT NULL DEFAULT 0 CHECK (uses >= 0),
    auto_approve boolean NOT NULL DEFAULT true,
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text NOT NULL DEFAULT '',
    expires_at   timestamptz,
    revoked_at   timestamptz,
    CHECK (max_uses = 0 OR uses <= max_uses)
);

CREATE TABLE devices (
    id                text PRIMARY KEY CHECK (id ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    public_key        bytea NOT NULL,            -- SubjectPublicKeyInfo, DER
    key_hash          bytea NOT NULL UNIQUE,     -- sha256 of public_key; registering is idempotent on it
    key_type          text NOT NULL,
    device_type       text NOT NULL DEFAULT '',
    serial            text NOT NULL DEFAULT '',
    description       text NOT NULL DEFAULT '',
    hardware_metadata jsonb NOT NULL DEFAULT '{}',
    labels            jsonb NOT NULL DEFAULT '{}',
    status            text NOT NULL CHECK (status IN ('pending', 'active', 'quarantined', 'revoked')),
    auth_epoch        bigint NOT NULL DEFAULT 0, -- rises whenever a granted connection must end
    receipt_hash      bytea,                     -- registration_token, hashed
    enrollment_token  text REFERENCES enrollment_tokens (id),
    next_seq          bigint NOT NULL DEFAULT 1, -- seq of the next command
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX devices_labels ON devices USING gin (labels jsonb_path_ops);

-- One narrow row a device, rewritten by every heartbeat: kept apart from
-- devices, with room on each page, so that updates stay on it (HOT).
CREATE TABLE device_status (
    device_id      text PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    session        bigint NOT NULL DEFAULT 0,
    seq            bigint NOT NULL DEFAULT 0,
    boot           text NOT NULL DEFAULT '',
    state_rev      bigint NOT NULL DEFAULT 0,     -- of the last full state stored
    online         boolean NOT NULL DEFAULT false,
    last_seen      timestamptz,                   -- last message; no index on purpose
    last_heartbeat timestamptz,
    health         text NOT NULL DEFAULT '',      -- healthy, degraded, error
    agent_version  text NOT NULL DEFAULT '',
    uptime_s       bigint NOT NULL DEFAULT 0,
    cpu_pct        real,
    memory_mb      real,
    disk_pct       real,
    os             text NOT NULL DEFAULT '',
    arch           text NOT NULL DEFAULT '',
    bundle_name    text NOT NULL DEFAULT '',
    bundle_version text NOT NULL DEFAULT '',
    release        text NOT NULL DEFAULT '',
    config_version bigint NOT NULL DEFAULT 0,     -- the last one the device gave an outcome for
    config_outcome text NOT NULL DEFAULT '',      -- applied, rejected, reverted
    config_error   text NOT NULL DEFAULT '',
    highest_seq    bigint NOT NULL DEFAULT 0      -- highest command seq the device has seen
) WITH (fillfactor = 70);

CREATE TABLE heartbeats (
    device_id  text NOT NULL,
    at         timestamptz NOT NULL,
    status     text NOT NULL,
    uptime_s   bigint NOT NULL,
    cpu_pct    real,
    memory_mb  real,
    disk_pct   real
) PARTITION BY RANGE (at);
CREATE INDEX heartbeats_device_at ON heartbeats (device_id, at);
-- Where a sample lands whose day has no partition yet: nothing is refused.
CREATE TABLE heartbeats_default PARTITION OF heartbeats DEFAULT;

CREATE TABLE bundles (
    id              text PRIMARY KEY,
    name            text NOT NULL,
    version         text NOT NULL,
    release         text NOT NULL UNIQUE,        -- sha256 of manifest.json's bytes
    checksum_sha256 text NOT NULL,
    size            bigint NOT NULL CHECK (size > 0),
    expanded        bigint NOT NULL DEFAULT 0,
    object_key      text NOT NULL UNIQUE,
    manifest        jsonb NOT NULL,
    part_size       bigint NOT NULL DEFAULT 0,
    parts           text[] NOT NULL DEFAULT '{}', -- sha256 of each part of part_size bytes
    signed_by       text NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text NOT NULL DEFAULT '',
    UNIQUE (name, version)
);

CREATE TABLE deployments (
    id            text PRIMARY KEY,
    kind          text NOT NULL CHECK (kind IN ('deploy', 'rollback')),
    bundle_id     text REFERENCES bundles (id),  -- NULL: each target names its own (rollback to what it had)
    description   text NOT NULL DEFAULT '',
    status        text NOT NULL CHECK (status IN ('pending', 'awaiting_approval', 'in_progress', 'paused', 'success', 'failed', 'cancelled')),
    reason        text NOT NULL DEFAULT '',
    selector      text NOT NULL DEFAULT '',
    rollout       jsonb NOT NULL DEFAULT '{}',
    cancel        boolean NOT NULL DEFAULT false, -- asked for; open targets are being cancelled
    deadline      timestamptz NOT NULL,
    counts        jsonb NOT NULL DEFAULT '{}',    -- targets by state, kept by the engine for lists
    total         integer NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL DEFAULT now(),
    created_by    text NOT NULL DEFAULT '',
    started_at    timestamptz,
    finished_at   timestamptz,
    dirty         boolean NOT NULL DEFAULT true   -- something changed since the engine last looked
);
CREATE INDEX deployments_open ON deployments (deadline) WHERE status IN ('pending', 'in_progress', 'paused', 'awaiting_approval');
CREATE INDEX deployments_created ON deployments (created_at DESC, id DESC);

-- A signed command to one device. It is open until its result, its deadline or
-- a cancellation closes it; next_send_at is both the retry time and the lease:
-- whoever claims a command moves it on, and generation fences a late writer.
CREATE TABLE commands (
    id           text PRIMARY KEY,
    device_id    text NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    seq          bigint NOT NULL,
    type         text NOT NULL CHECK (type IN ('deploy', 'rollback', 'configure', 'cancel', 'restart', 'logs', 'rotate_key')),
    body         jsonb NOT NULL,
    status       text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'done', 'cancelled', 'expired')),
    issued_at    timestamptz NOT NULL DEFAULT now(),
    not_after    timestamptz NOT NULL,
    next_send_at timestamptz NOT NULL DEFAULT now(),
    sends        integer NOT NULL DEFAULT 0,
    generation   bigint NOT NULL DEFAULT 0,
    received_at  timestamptz,                    -- the device said so; not sent again unless it asks
    closed_at    timestamptz,
    result_state text NOT NULL DEFAULT '',
    result       jsonb,
    UNIQUE (device_id, seq)
);
CREATE INDEX commands_open ON commands (next_send_at) WHERE status = 'open';
CREATE INDEX commands_open_device ON commands (device_id, seq) WHERE status = 'open';

CREATE TABLE deployment_targets (
    deployment_id    text NOT NULL REFERENCES deployments (id) ON DELETE CASCADE,
    device_id        text NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    bundle_id        text NOT NULL REFERENCES bundles (id),
    command_id       text UNIQUE,
    state            text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'offered', 'accepted', 'downloading', 'installing', 'verifying',
                         'succeeded', 'failed', 'rolled_back', 'rejected', 'cancelled', 'timed_out', 'expired', 'superseded')),
    step             text NOT NULL DEFAULT '',
    attempt          integer NOT NULL DEFAULT 0,
    error_code       text NOT NULL DEFAULT '',
    error_message    text NOT NULL DEFAULT '',
    bytes            bigint NOT NULL DEFAULT 0,
    output           text NOT NULL DEFAULT '',
    previous_bundle  text NOT NULL DEFAULT '',   -- bundle id that the device ran when the target was offered
    previous_version text NOT NULL DEFAULT '',
    deadline         timestamptz NOT NULL,
    timeout_s        integer NOT NULL DEFAULT 300, -- one step's time once the device has accepted
    offered_at       timestamptz,
    accepted_at      timestamptz,
    finished_at      timestamptz,
    duration_ms      bigint NOT NULL DEFAULT 0,
    late_result      jsonb,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (deployment_id, device_id)
);
CREATE INDEX deployment_targets_device ON deployment_targets (device_id)
    WHERE state IN ('pending', 'offered', 'accepted', 'downloading', 'installing', 'verifying');
CREATE INDEX deployment_targets_deadline ON deployment_targets (deadline)
    WHERE state IN ('pending', 'offered', 'accepted', 'downloading', 'installing', 'verifying');

CREATE TABLE device_bundle_history (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device_id     text NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    bundle_id     text NOT NULL REFERENCES bundles (id),
    deployment_id text NOT NULL,
    status        text NOT NULL CHECK (status IN ('success', 'failed', 'rolled_back')),
    error         text NOT NULL DEFAULT '',
    late          boolean NOT NULL DEFAULT false,
    deployed_at   timestamptz NOT NULL DEFAULT now(),
    duration_s    double precision NOT NULL DEFAULT 0,
    UNIQUE (deployment_id, device_id, late)
);
CREATE INDEX device_bundle_history_device ON device_bundle_history (device_id, id DESC);

CREATE TABLE device_configs (
    device_id            text PRIMARY KEY REFERENCES devices (id) ON DELETE CASCADE,
    version              bigint NOT NULL DEFAULT 1,
    heartbeat_interval_s integer NOT NULL DEFAULT 60 CHECK (heartbeat_interval_s BETWEEN 1 AND 86400),
    heartbeat_timeout_s  integer NOT NULL DEFAULT 30 CHECK (heartbeat_timeout_s BETWEEN 5 AND 3600),
    deploy_timeout_s     integer NOT NULL DEFAULT 300 CHECK (deploy_timeout_s BETWEEN 1 AND 86400),
    log_level            text NOT NULL DEFAULT 'info' CHECK (log_level IN ('debug', 'info', 'warn', 'error')),
    metadata             jsonb NOT NULL DEFAULT '{}',
    updated_at           timestamptz NOT NULL DEFAULT now(),
    updated_by           text NOT NULL DEFAULT ''
);

CREATE TABLE device_config_versions (
    device_id  text NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
    version    bigint NOT NULL,
    config     jsonb NOT NULL,
    outcome    text NOT NULL DEFAULT '',          -- applied, rejected, reverted; '' until the device says
    error      text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    created_by text NOT NULL DEFAULT '',
    PRIMARY KEY (device_id, version)
);

CREATE TABLE audit (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    actor   text NOT NULL,                        -- token id and name, or 'system'
    action  text NOT NULL,
    subject text NOT NULL,
    before  jsonb,
    after   jsonb,
    remote  text NOT NULL DEFAULT ''
);
CREATE INDEX audit_subject ON audit (subject, id DESC);

-- Written in the transaction of the change; one publisher numbers committed
-- rows, so a reader that follows number sees every event once and in order.
CREATE TABLE events (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    number    bigint UNIQUE,
    at        timestamptz NOT NULL DEFAULT now(),
    type      text NOT NULL,
    subject   text NOT NULL,
    device_id text NOT NULL DEFAULT '',
    data      jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX events_unnumbered ON events (id) WHERE number IS NULL;

CREATE TABLE idempotency_keys (
    token_id   text NOT NULL,
    key        text NOT NULL,
    request    bytea NOT NULL,                    -- sha256 of method, path and body
    status     integer NOT NULL DEFAULT 0,        -- 0 while the first request is still running
    response   bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (token_id, key)
);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);

-- Which replica may do a thing that only one may do (numbering events, the
-- engine's clock): holder by name, with a generation that fences a late writer.
CREATE TABLE leases (
    name       text PRIMARY KEY,
    holder     text NOT NULL DEFAULT '',
    generation bigint NOT NULL DEFAULT 0,
    until      timestamptz NOT NULL DEFAULT '-infinity'
);

-- +goose Down
SELECT 1;
