-- Orders that could not be logged because Redis was away, until a worker stores them. One row is what one
-- order_api took in one flush: the same record batch that a stream entry would carry.
CREATE TABLE intake (
    -- Query: the oldest batches (drain); batches not older than an id (an order by its id).
    batch_id uuid PRIMARY KEY,
    version smallint NOT NULL,
    records int NOT NULL,
    bytes int NOT NULL,
    appended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    trace text NOT NULL,
    order_ids uuid[] NOT NULL,
    data bytea NOT NULL
);
-- Compressing on the way in would cost more than the row's short life is worth.
ALTER TABLE intake ALTER COLUMN data SET STORAGE EXTERNAL;

COMMENT ON COLUMN intake.version IS 'wire version of data: a worker takes what it can read';

-- What the intake ever took: one row an append, in its transaction; care adds them up. With the ledger's sums
-- of shard -1 and the rows that wait it says whether any was lost.
CREATE TABLE intake_accepted (
    batches bigint NOT NULL,
    records bigint NOT NULL
);

-- Which order an Idempotency-Key led to: the worker's and the intake's common memory, because each of them
-- takes orders that the other can't see. key_hash is made of tenant and key, so it is unique for all
-- tenants; the intake also notes ids that clients brought, under the id itself. A row is forgotten when the
-- time in its batch_id is older than the key window.
CREATE TABLE order_keys (
    -- Query: who holds a key; a key is held once.
    key_hash uuid PRIMARY KEY,
    order_id uuid NOT NULL,
    body_hash uuid NOT NULL,
    batch_id uuid NOT NULL
);

-- Since when every keyed order that was stored is in order_keys (Unix seconds; 0: always). Orders of before
-- are not, so the intake takes no keyed ones until their keys are over.
INSERT INTO install (name, value)
SELECT 'order_keys_since',
       CASE WHEN EXISTS (SELECT FROM stream_entries) OR EXISTS (SELECT FROM shard_sums)
            THEN ceil(extract(epoch FROM now()))::bigint::text ELSE '0' END;
