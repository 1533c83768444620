-- What is kept of the numbers of compacted ledger rows is kept by the tables themselves. The release before
-- compacts and records gaps by statements that know nothing of numbers, while it runs beside this one and after a
-- way back to it: its rows left holes, which were taken for missing records as soon as the sums differed.

-- Numbers of the rows that a compaction deletes. It has set through_ms in the same statement; a row above that was
-- deleted by hand, and its numbers stay missing. Strangers' entries may claim any number, or none.
CREATE FUNCTION keep_compacted_numbers() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    UPDATE shard_sums AS s
    SET numbers = s.numbers + kept.numbers,
        through_counter = greatest(s.through_counter, kept.through_counter)
    FROM (
        SELECT g.shard,
               coalesce(range_agg(int8range(g.counter - g.records, g.counter, '(]'))
                   FILTER (WHERE g.records > 0 AND g.counter >= g.records), '{}') AS numbers,
               coalesce(max(g.counter) FILTER (WHERE g.stored > 0), 0) AS through_counter
        FROM gone AS g JOIN shard_sums AS t ON t.shard = g.shard AND g.entry_ms <= t.through_ms
        WHERE g.counter <= 4611686018427387903
        GROUP BY g.shard
    ) AS kept
    WHERE s.shard = kept.shard;
    RETURN NULL;
END
$$;

CREATE TRIGGER stream_entries_numbers AFTER DELETE ON stream_entries
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION keep_compacted_numbers();

-- What compacted rows had of a gap (a log that was emptied loses all its numbers).
CREATE FUNCTION find_compacted_numbers() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    NEW.records_found := greatest(NEW.records_found, (
        SELECT sum(upper(part) - lower(part))
        FROM shard_sums AS s, unnest(s.numbers * int8multirange(int8range(
            least(NEW.counter_from, NEW.counter_to, 4611686018427387903),
            least(NEW.counter_to, 4611686018427387903), '(]'))) AS part
        WHERE s.shard = NEW.shard
    ));
    RETURN NEW;
END
$$;

CREATE TRIGGER gaps_numbers BEFORE INSERT ON gaps
    FOR EACH ROW EXECUTE FUNCTION find_compacted_numbers();
