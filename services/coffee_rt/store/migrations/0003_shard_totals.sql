-- What the ledger's rows add up to, kept beside them: the conservation sums below an entry are the total
-- less the few rows from that entry on, instead of a sum over an hour of rows. Every commit appends (no row
-- that all commits would wait for); care folds the changes into shard_sums.
CREATE TABLE shard_changes (
    shard smallint NOT NULL,
    entries bigint NOT NULL,
    records bigint NOT NULL,
    stored bigint NOT NULL,
    duplicates bigint NOT NULL,
    dead bigint NOT NULL
);

INSERT INTO shard_changes
SELECT shard, count(*), sum(records), sum(stored), sum(duplicates), sum(dead)
FROM stream_entries GROUP BY shard;
