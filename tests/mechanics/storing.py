"""Mechanisms of storing: the worker's transaction, its errors, partitions, the log's trim, look-ups."""

from __future__ import annotations

from tests.mechanics.mechanism import Edit, Mechanism

_LOCKS = "integration/test_guarantees_locks.py"
_COMMIT = "integration/test_store_commit.py"
_CARE = "integration/test_store_care.py"

STORING = (
    Mechanism(
        "ledger-in-one-order",
        "ledger rows are taken in the order of their ids",
        "two workers with the same entries wait for each other's next row: a deadlock, again and again",
        (Edit("store/ledger.py", "    FROM entry ORDER BY batch_id\n", "    FROM entry\n"),),
        (f"{_LOCKS}::test_two_workers_take_the_same_entries_in_any_order_without_deadlock",),
    ),
    Mechanism(
        "orders-in-one-order",
        "orders are copied in the order of their ids",
        "two workers with the same orders in different entries deadlock in the primary key",
        (Edit("store/batches.py", "    plan.rows.sort(key=_first)\n", ""),),
        (
            "mechanics/test_storing.py"
            "::test_the_same_orders_in_two_entries_are_stored_once_without_deadlock",
        ),
    ),
    Mechanism(
        "commits-are-synchronous",
        "each transaction asks for a synchronous commit itself",
        "a database that prefers speed loses orders that were acknowledged to the log",
        (Edit("store/orders.py", "SET LOCAL synchronous_commit = on;", ""),),
        (f"{_COMMIT}::test_commit_is_durable_whatever_the_database_prefers",),
    ),
    Mechanism(
        "settings-inside-the-transaction",
        "through a pooler nothing is set at start-up and no statement has a name",
        "the pooler refuses the connection, or hands the statement's name to another server",
        (Edit("store/pool.py", "    if settings.statement_cache_size:\n", "    if True:\n"),),
        ("mechanics/test_storing.py::test_a_poolers_session_is_left_as_it_was",),
    ),
    Mechanism(
        "no-named-statements",
        "with a statement cache of 0 the driver names no statement",
        "behind a pooler another server is asked for a statement that it never prepared",
        (
            Edit(
                "store/pool.py",
                "statement_cache_size=settings.statement_cache_size,",
                "statement_cache_size=100,",
            ),
        ),
        ("mechanics/test_storing.py::test_a_poolers_session_is_left_as_it_was",),
    ),
    Mechanism(
        "catalogue-lock-of-commits",
        "a commit holds the shared side of the views' lock to its end",
        "a view made meanwhile misses the commit's orders for ever",
        (
            Edit(
                "store/orders.py",
                "SELECT pg_advisory_xact_lock_shared({CATALOGUE_LOCK})",
                "SELECT {CATALOGUE_LOCK}",
            ),
        ),
        ("mechanics/test_storing.py::test_a_commit_that_waited_for_a_new_view_carries_its_deltas",),
    ),
    Mechanism(
        "catalogue-read-after-its-lock",
        "the views' generation is read in a statement after the lock, with a snapshot of its own",
        "a commit that waited for a new view still sees the old set of views",
        (
            Edit(
                "store/orders.py",
                "BEGIN ISOLATION LEVEL READ COMMITTED;",
                "BEGIN ISOLATION LEVEL REPEATABLE READ;",
            ),
        ),
        ("mechanics/test_storing.py::test_a_commit_that_waited_for_a_new_view_carries_its_deltas",),
    ),
    Mechanism(
        "a-repeated-batch-writes",
        "a batch that is wholly in the ledger makes one small write before it is acknowledged",
        "the first commit may not be on disk yet when its entries leave the log",
        (
            Edit(
                "store/orders.py",
                "await touch_entry(connection, batch.plan.entries[0].ledger_id)",
                "pass",
            ),
            Edit("store/orders.py", "record_gaps, touch_entry", "record_gaps"),
        ),
        (f"{_COMMIT}::test_batch_wholly_seen_still_makes_a_write",),
    ),
    Mechanism(
        "a-repetition-in-the-intake-writes",
        "a flush of the intake that holds nothing but repetitions makes one small write",
        "an order whose commit gave up its wait for a standby is answered as safe though no standby has it",
        (
            Edit(
                "store/intake.py",
                "                elif not claims:\n",
                "                elif False:\n",
            ),
        ),
        (
            "integration/test_intake.py"
            "::test_a_repetition_that_only_the_intake_answers_is_a_write_of_its_own",
        ),
    ),
    Mechanism(
        "a-missing-partition-is-no-verdict",
        "of the failed checks, the one that names no constraint means a partition is missing",
        "all orders of a day without a partition become dead letters",
        (
            Edit(
                "store/faults.py",
                "if state == _CHECK and error.constraint_name is None:",
                "if False:",
            ),
        ),
        ("integration/test_worker.py::test_missing_partition_is_made_by_the_commit",),
    ),
    Mechanism(
        "frozen-workers-are-terminated",
        "whoever takes over an entry ends the backend that has held it too long",
        "a worker that stopped inside COPY keeps its entries for ever: no time-out of the server fires",
        (
            Edit(
                "store/orders.py",
                "watch = asyncio.create_task(self._terminate_blockers(pid))",
                "watch = asyncio.create_task(asyncio.sleep(0))",
            ),
        ),
        (f"{_COMMIT}::test_claimed_entry_is_freed_from_a_worker_frozen_in_copy",),
    ),
    Mechanism(
        "pending-entries-hold-the-trim",
        "the trim looks at what each group has delivered and at what of it is pending, in one call",
        "an entry that is delivered but not stored leaves the log",
        (Edit("streams/lua/trim.lua", "if facts.pending > 0 then", "if false then"),),
        (
            "contract/test_streams_keeper.py::test_only_what_every_group_acknowledged_is_trimmed",
            "mechanics/test_storing.py::test_entries_delivered_during_trims_are_never_trimmed",
        ),
    ),
    Mechanism(
        "compaction-below-the-first-entry",
        "the ledger forgets only what lies below the log's first entry",
        "a group made anew replays what a slow second group still keeps: those orders come twice",
        (
            Edit(
                "store/ledger.py",
                "WHERE shard = $1 AND (entry_ms, entry_seq) < ($2::int8, $3::int8)\n"
                "    ORDER BY entry_ms, entry_seq LIMIT $4",
                "WHERE shard = $1 AND $2::int8 + $3::int8 IS NOT NULL\n"
                "    ORDER BY entry_ms, entry_seq LIMIT $4",
            ),
        ),
        (
            "integration/test_guarantees_care.py::test_the_ledger_forgets_only_what_has_left_the_log",
        ),
    ),
    Mechanism(
        "late-orders-have-an-index",
        "late orders have a small index of their own; the others are found by their id",
        "recomputing one hour reads the whole table for the one order in two hundred that came late",
        (
            Edit(
                "store/migrations/0001_orders.sql",
                "CREATE INDEX orders_late ON orders (ordered_at) WHERE is_late;",
                "",
            ),
        ),
        (f"{_CARE}::test_late_orders_of_an_hour_are_read_by_their_index",),
    ),
    Mechanism(
        "look-ups-plan-for-their-value",
        "every statement is planned for its values",
        "after five look-ups by id PostgreSQL prefers one plan for all, which locks every partition",
        (Edit("store/pool.py", '"plan_cache_mode": "force_custom_plan", ', ""),),
        (f"{_CARE}::test_look_up_by_id_locks_one_partition_only",),
    ),
)
