-- Orders: the OrderPlaced facts. Rows are inserted once and never updated. Partitioned by day of the
-- UUIDv7 id, so that the id alone is a globally unique key and finds its partition.
CREATE TABLE orders (
    order_id uuid NOT NULL,
    batch_id uuid NOT NULL,
    body_hash bytea NOT NULL,
    price_minor bigint NOT NULL CONSTRAINT orders_price CHECK (price_minor > 0),
    ordered_at timestamptz NOT NULL,
    accepted_at timestamptz NOT NULL,
    tenant int NOT NULL,
    quantity int NOT NULL CONSTRAINT orders_quantity CHECK (quantity > 0),
    is_late boolean NOT NULL,
    store text NOT NULL CONSTRAINT orders_store CHECK (octet_length(store) <= 128),
    drink text NOT NULL CONSTRAINT orders_drink CHECK (octet_length(drink) <= 128),
    customer_id text,
    note text,
    attributes jsonb,
    -- Query: one order by its id; recent orders by id; on-time orders of a span by id range.
    PRIMARY KEY (order_id)
) PARTITION BY RANGE (order_id);

COMMENT ON COLUMN orders.is_late IS
    'ordered_at is more than an hour from the time in the id: not found by an id range';
COMMENT ON COLUMN orders.batch_id IS 'the stream entry the order came from';

-- Query: late orders of a span of event time (rebuild and audit of views).
CREATE INDEX orders_late ON orders (ordered_at) WHERE is_late;

-- The entry ledger: which stream entries are stored. One row an entry, in the orders' own transaction.
CREATE TABLE stream_entries (
    -- Query: was this batch stored before (the exactly-once check).
    batch_id uuid PRIMARY KEY,
    entry_ms bigint NOT NULL,
    entry_seq bigint NOT NULL,
    counter bigint NOT NULL,
    stored_at timestamptz NOT NULL DEFAULT now(),
    records int NOT NULL,
    stored int NOT NULL,
    duplicates int NOT NULL DEFAULT 0,
    dead int NOT NULL,
    redeliveries int NOT NULL DEFAULT 0,
    shard smallint NOT NULL
) WITH (fillfactor = 95);

-- Query: compaction and conservation sums of a shard below an entry.
CREATE INDEX stream_entries_position ON stream_entries (shard, entry_ms, entry_seq);

-- What compacted ledger rows added up to.
CREATE TABLE shard_sums (
    shard smallint PRIMARY KEY,
    entries bigint NOT NULL DEFAULT 0,
    records bigint NOT NULL DEFAULT 0,
    stored bigint NOT NULL DEFAULT 0,
    duplicates bigint NOT NULL DEFAULT 0,
    dead bigint NOT NULL DEFAULT 0,
    -- Newest entry compacted: what is clearly older was stored.
    through_ms bigint NOT NULL DEFAULT 0
);

-- Records the log acknowledged and then lost in a failover: (counter_from, counter_to] of a shard.
CREATE TABLE gaps (
    batch_id uuid PRIMARY KEY,
    shard smallint NOT NULL,
    entry_ms bigint NOT NULL,
    entry_seq bigint NOT NULL,
    counter_from bigint NOT NULL,
    counter_to bigint NOT NULL,
    -- Records of the range that had been stored before they were lost, from compacted ledger rows.
    records_found bigint NOT NULL DEFAULT 0,
    noticed_at timestamptz NOT NULL DEFAULT now()
);

-- Records that can't be stored, with their bytes.
CREATE TABLE dead_letters (
    -- Query: pages of dead letters, newest first.
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant int NOT NULL,
    shard smallint NOT NULL,
    entry_ms bigint NOT NULL,
    entry_seq bigint NOT NULL,
    batch_id uuid NOT NULL,
    record_index int NOT NULL,
    order_id uuid,
    code text NOT NULL,
    detail text NOT NULL,
    raw bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Query: what became of an order that was accepted but isn't stored.
CREATE INDEX dead_letters_order ON dead_letters (order_id) WHERE order_id IS NOT NULL;

-- Ids that were answered for an order stored under another one (losers of a key race).
CREATE TABLE order_aliases (
    -- Query: an order by an id that isn't its own.
    order_id uuid PRIMARY KEY,
    tenant int NOT NULL,
    target uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- Facts of this installation: number of shards, up to where orders were retired.
CREATE TABLE install (
    name text PRIMARY KEY,
    value text NOT NULL,
    set_at timestamptz NOT NULL DEFAULT now()
);

-- Which processes run, and what they can maintain.
CREATE TABLE heartbeats (
    process text NOT NULL,
    instance text NOT NULL,
    feature_level int NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    beat_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (process, instance)
);

-- API keys; the secret only as a hash.
CREATE TABLE api_keys (
    key_id text PRIMARY KEY,
    tenant int NOT NULL,
    name text NOT NULL,
    secret_hash bytea NOT NULL,
    scopes text[] NOT NULL,
    requests_per_minute int,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
);
