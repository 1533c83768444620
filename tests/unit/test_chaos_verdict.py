"""The judge sees every kind of broken promise: a harness that could not would prove nothing."""

from __future__ import annotations

import pytest

from tests.chaos.facts import Facts, Row
from tests.chaos.notes import Attempt, Notes, Sent, collect_notes
from tests.chaos.postgres import synced_writes
from tests.chaos.report import report_of
from tests.chaos.valkey import synced_bytes
from tests.chaos.verdict import Expected, Verdict, judge, last_failure

HOUR = 3600 * 490_000


def sent(name: str, *, is_bad: bool = False) -> Sent:
    return Sent(name, "p-uptown", "tea", 250, 2, HOUR + 61, is_bad, "retried")


def row(order_id: str) -> Row:
    return Row(order_id, "p-uptown", "tea", 250, 2, HOUR + 61)


def facts_of(rows: dict[str, list[Row]]) -> Facts:
    """With the views that these rows add up to."""
    facts = Facts(rows=rows, imbalances=[0])
    for stored in rows.values():
        for _ in stored:
            for measure, value in (("orders", 1), ("quantity", 2), ("revenue", 500)):
                facts.hourly[HOUR, "p-uptown", "tea", measure] += value
            facts.minutely[HOUR + 60, "p-uptown", "orders"] += 1
            facts.minutely[HOUR + 60, "p-uptown", "revenue"] += 500
    return facts


def notes_of(*attempts: Attempt, is_bad: bool = False) -> Notes:
    names = dict.fromkeys(attempt.name for attempt in attempts)
    return collect_notes([*(sent(name, is_bad=is_bad) for name in names), *attempts])


OK = Attempt("a", 1.0, 0.1, "ok", "id-1", status=202)
UNKNOWN = Attempt("a", 0.5, 0.1, "unknown")
REFUSED = Attempt("a", 1.0, 0.1, "refused", status=422)
AWAY = Attempt("a", 1.0, 0.1, "away", status=503)


def judged(notes: Notes, facts: Facts) -> Verdict:
    return judge(notes, facts, Expected())


def test_a_promise_kept_has_no_problems() -> None:
    verdict = judged(notes_of(UNKNOWN, OK), facts_of({"a": [row("id-1")]}))
    assert verdict.problems == []
    assert (verdict.accepted, verdict.stored, verdict.lost, verdict.resolved) == (1, 1, 0, 1)


def test_a_lost_order_is_seen() -> None:
    verdict = judged(notes_of(OK), facts_of({}))
    assert (verdict.accepted, verdict.lost) == (1, 1)
    assert verdict.problems == ["1 accepted orders are not stored"]


def test_an_order_stored_twice_is_seen() -> None:
    verdict = judged(notes_of(OK), facts_of({"a": [row("id-1"), row("id-2")]}))
    assert verdict.duplicated == 1
    assert "1 rows too many" in verdict.problems


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        (notes_of(REFUSED, is_bad=True), "refused, and stored"),
        (notes_of(AWAY), "every answer said that nothing was done"),
        (notes_of(OK, Attempt("a", 2.0, 0.1, "ok", "id-2")), "2 different ids"),
        (notes_of(OK, REFUSED), "accepted and refused"),
        (notes_of(Attempt("a", 2.0, 0.1, "ok", "id-9")), "told id-9, stored as id-1"),
        (notes_of(OK, Attempt("a", 2.0, 0.1, "denied", status=401)), "answered 401"),
    ],
)
def test_each_broken_promise_is_named(notes: Notes, told: str) -> None:
    verdict = judged(notes, facts_of({"a": [row("id-1")]}))
    assert any(told in problem for problem in verdict.problems)


def test_an_alias_resolves_what_was_told() -> None:
    facts = facts_of({"a": [row("id-1")]})
    facts.aliases = {"id-9": "id-1"}
    assert judged(notes_of(Attempt("a", 2.0, 0.1, "ok", "id-9")), facts).problems == []


def test_other_values_than_were_sent_are_seen() -> None:
    other = Row("id-1", "p-uptown", "tea", 251, 2, HOUR + 61)
    assert any(
        "stored as" in each for each in judged(notes_of(OK), facts_of({"a": [other]})).problems
    )


def test_a_view_that_is_a_cent_off_is_seen() -> None:
    facts = facts_of({"a": [row("id-1")]})
    facts.hourly[HOUR, "p-uptown", "tea", "revenue"] += 1
    assert any("view hourly" in problem for problem in judged(notes_of(OK), facts).problems)


def test_sums_that_do_not_balance_are_seen() -> None:
    facts = facts_of({"a": [row("id-1")]})
    facts.imbalances, facts.differences, facts.dead_letters = [0, 1], 2, 3
    assert len(judged(notes_of(OK), facts).problems) == 3


def test_recovery_ends_with_the_last_failure() -> None:
    attempts = [OK, Attempt("b", 4.0, 2.0, "unknown"), Attempt("c", 5.0, 0.1, "ok", "id-2")]
    assert last_failure(attempts, since=3.0) == 3.0


def test_only_what_a_finished_sync_covers_survives_a_power_cut() -> None:
    trace = "\n".join(
        (
            "7 write(9, ..., 100) = 100",
            "7 fdatasync(9) = 0 (DELAYED)",
            "7 write(9, ..., 50) = 50",
            "8 fdatasync(9 <unfinished ...>",
            "7 write(9, ..., 25) = 25",
            "8 <... fdatasync resumed>) = 0 (DELAYED)",
            "7 write(9, ..., 10) = 10",
            "8 fdatasync(9 <unfinished ...>",
        )
    )
    assert synced_bytes(trace, 1000, is_sure=True) == 1150
    assert synced_bytes(trace, 1000, is_sure=False) == 1175


def test_only_log_that_a_finished_sync_was_called_after_survives_a_power_cut() -> None:
    """Calls of several sessions interleave; one sync fails, one never comes back."""
    name = "000000010000000000000001"
    file = "".join(f"\\x{byte:02x}" for byte in f"/data/pg_wal/{name}".encode())
    trace = rf"""
7     pwrite64(5<{file}>, "\x61\x62", 2, 0) = 2
7     fdatasync(5<{file}> <unfinished ...>
812   pwrite64(9<{file}>, "\x63", 1, 2) = 1
7     <... fdatasync resumed>) = 0 (DELAYED)
7     pwrite64(6<\x62\x61\x73\x65>, "\x7a", 1, 0) = 1
812   fdatasync(9<{file}>) = -1 EIO (Input/output error) (INJECTED)
812   pwrite64(9<{file}>, "\x64", 1, 3) = 1
812   fdatasync(9<{file}> <unfinished ...>
812   +++ killed by SIGKILL +++
"""
    assert synced_writes(trace.splitlines()) == ({name: [(0, b"ab")]}, 2)


def test_a_page_names_the_code_that_ran_and_not_that_pages_are_being_written() -> None:
    page = report_of([judged(notes_of(OK), facts_of({"a": [row("id-1")]}))], 7, "0123456789ab")
    assert "commit 0123456789ab;" in page
    assert "seed 7." in page
    assert "1 scenarios." in page
