-- Which numbers of a shard's count the compacted ledger rows had. The sums alone can't tell a lost record from
-- one whose number was given twice, after a failover of the log that counted on from less.
ALTER TABLE shard_sums
    ADD COLUMN numbers int8multirange NOT NULL DEFAULT '{}',
    -- Highest number of a compacted record that was stored.
    ADD COLUMN through_counter bigint NOT NULL DEFAULT 0;

-- Rows compacted before are taken for all that was counted up to the rows that are left.
UPDATE shard_sums AS s
SET numbers = int8multirange(int8range(0, through, '(]')), through_counter = through
FROM (
    SELECT s.shard, least(coalesce(
        (SELECT min(e.counter - e.records) FROM stream_entries AS e
         WHERE e.shard = s.shard AND e.stored > 0 AND e.counter >= e.records),
        s.records
    ), 4611686018427387903) AS through
    FROM shard_sums AS s WHERE s.through_ms > 0 AND s.shard >= 0
) AS t
WHERE s.shard = t.shard AND t.through > 0;
