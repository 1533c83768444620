"""Redrives and replays are done once and to their end, whatever fails and whoever goes on."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coffee_rt.domain.views import compute_deltas
from coffee_rt.domain.wire import encode_record
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.operator.object_status import instant_text
from coffee_rt.operator.one_shots import LOOK_SECONDS
from coffee_rt.operator.redrive_plan import read_request
from coffee_rt.operator.replay_plan import ViewReplay, plan_views, start_of
from coffee_rt.operator.replay_plan import read_request as read_replay
from coffee_rt.store.contract import DeadRecord
from coffee_rt.store.memory_rows import merged_groups
from coffee_rt.store.redrives import LetterSelection
from coffee_rt.store.view_contract import Chunk, ViewState
from tests.builders import NOW_MS, a_view, an_order
from tests.operator_bed import OperatorBed
from tests.view_writing import some_orders

LASTING: dict[str, Any] = {"retention_days": 36_500}


class Killed(BaseException):
    """An operator's end without any handling."""


@pytest.fixture
def bed() -> OperatorBed:
    return OperatorBed()


def good_letters(number: int) -> list[DeadRecord]:
    orders = [an_order() for _ in range(number)]
    return [
        DeadRecord(index, encode_record(order), "unstorable-entry", "parked", 0, order.order_id)
        for index, order in enumerate(orders)
    ]


def bad_letter(index: int = 0) -> DeadRecord:
    return DeadRecord(index, b"\xc1", "unreadable-record", "?")


async def sums(bed: OperatorBed) -> tuple[int, int, int, int]:
    found = await bed.keeper.ledger_sums(0, None)
    return found["records"], found["stored"], found["duplicates"], found["dead"]


def test_a_redrive_must_choose() -> None:
    with pytest.raises(Rejected):
        read_request({"letters": {}})
    assert read_request({"letters": {"all": True}}).selection == LetterSelection()
    spec = {"letters": {"code": "x", "from": "2026-01-01T00:00:00Z"}, "limit": 5, "dryRun": True}
    request = read_request(spec)
    assert (request.selection.code, request.selection.start) == ("x", 1_767_225_600)
    assert (request.limit, request.is_dry_run) == (5, True)


@pytest.mark.parametrize(
    "spec",
    [
        {"span": {"from": "yesterday"}},
        {"span": {"from": "2026-01-02T00:00:00Z", "to": "2026-01-01T00:00:00Z"}},
    ],
)
def test_a_replays_span_must_be_one(spec: dict[str, Any]) -> None:
    with pytest.raises(Rejected):
        read_replay(spec)


def test_a_replay_goes_on_where_its_status_is() -> None:
    states = [ViewState(a_view(name), f"{name}_1", "e", True, None) for name in ("a", "b")]
    replay = ViewReplay("b").after(Chunk("b_1", 0, 7200), 3)
    status = {"views": [ViewReplay("a").finished().to_status(), replay.to_status()]}
    request = read_replay({"span": {"from": "1970-01-01T01:00:00Z"}})
    assert plan_views(request, states, status) == [ViewReplay("a").finished(), replay]
    assert start_of(request, ViewReplay("a")) == 3600
    assert start_of(request, replay) == 7200


async def test_a_redrive_counts_what_became_of_its_letters(bed: OperatorBed) -> None:
    await bed.store(dead=[*good_letters(700), bad_letter(700)])
    bed.cluster.put("redrives", "mend", {"letters": {"all": True}})
    await bed.operator().redrives.turn()
    status = bed.status("redrives", "mend")
    assert (status["phase"], status["tried"], status["selected"]) == ("Complete", 701, 701)
    assert (status["stored"], status["stillBad"], status["duplicates"]) == (700, 1, 0)
    assert [sample["code"] for sample in status["samples"]] == ["unreadable-record"]
    assert bed.condition("redrives", "mend", "Complete") == ("True", "Complete")
    assert await sums(bed) == (701, 700, 0, 1)
    # A finished object is never begun again.
    bed.cluster.events.clear()
    await bed.operator().redrives.turn()
    assert bed.cluster.events == []


async def test_a_redrive_keeps_to_its_limit_and_a_dry_run_changes_nothing(bed: OperatorBed) -> None:
    await bed.store(dead=good_letters(600))
    bed.cluster.put("redrives", "look", {"letters": {"all": True}, "dryRun": True, "limit": 550})
    await bed.operator().redrives.turn()
    assert bed.status("redrives", "look")["stored"] == 550
    assert await sums(bed) == (600, 0, 0, 600)
    bed.cluster.put("redrives", "some", {"letters": {"all": True}, "limit": 501})
    await bed.operator().redrives.turn()
    status = bed.status("redrives", "some")
    assert (status["stored"], status["selected"]) == (501, 501)
    assert await sums(bed) == (600, 501, 0, 99)


@pytest.mark.parametrize(
    ("letters", "place"),
    [
        ({"code": "a\x00"}, "/letters/code"),
        ({"code": "\ud800"}, "/letters/code"),
        ({"from": "0001-01-01T00:00:00+14:00"}, "/letters/from"),
        ({"to": "9999-12-31T23:59:59-14:00"}, "/letters/to"),
        ({"to": "2026-06-30T23:59:60Z"}, "/letters/to"),
    ],
)
async def test_a_redrive_no_database_could_be_asked_for_fails_alone(
    bed: OperatorBed, letters: dict[str, Any], place: str
) -> None:
    """All of these pass the definition's schema. Two at once: the one after it is done."""
    await bed.store(dead=good_letters(1))
    bed.cluster.put("redrives", "bad", {"letters": letters})
    bed.cluster.put("redrives", "good", {"letters": {"all": True}})
    await bed.operator().redrives.turn()
    assert bed.condition("redrives", "bad", "Complete") == ("False", "Failed")
    assert place in bed.status("redrives", "bad")["message"]
    assert bed.status("redrives", "good")["stored"] == 1


@pytest.mark.parametrize("end", ["from", "to"])
@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_replay_of_times_without_a_date_is_refused(end: str, text: str) -> None:
    with pytest.raises(Rejected) as caught:
        read_replay({"span": {end: text}})
    assert caught.value.place == f"/span/{end}"


async def test_a_redrive_that_chooses_nothing_readable_fails(bed: OperatorBed) -> None:
    bed.cluster.put("redrives", "bad", {"letters": {}})
    await bed.operator().redrives.turn()
    assert bed.condition("redrives", "bad", "Complete") == ("False", "Failed")


async def run_with_kills(bed: OperatorBed, plural: str, seed: int) -> None:
    """Operators one after the other, each killed at some call or failed by it, until one gets through."""
    chance = random.Random(seed)

    def hit(_: str) -> None:
        bed.clock.at += 0.3
        if chance.random() < 0.1:
            raise Killed
        if chance.random() < 0.2:
            raise Retryable("away")

    for _ in range(500):
        bed.database.fault_hook = bed.cluster.fault_hook = hit
        try:
            operator = bed.operator()
            await (operator.redrives if plural == "redrives" else operator.replays).turn()
        except Killed:
            continue
        finally:
            bed.database.fault_hook = bed.cluster.fault_hook = None
        if bed.cluster.objects[plural, "it"].status.get("phase") == "Complete":
            return
    raise AssertionError("never got through")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
async def test_killed_redrives_store_each_letter_once_and_know_the_count(seed: int) -> None:
    bed = OperatorBed()
    await bed.catalogue.ensure_views([a_view(**LASTING)])
    await bed.store(dead=[*good_letters(1200), bad_letter(1200)])
    bed.cluster.put("redrives", "it", {"letters": {"all": True}})
    await run_with_kills(bed, "redrives", seed)
    status = bed.status("redrives", "it")
    assert (status["stored"], status["stillBad"], status["tried"]) == (1200, 1, 1201)
    assert await sums(bed) == (1201, 1200, 0, 1)
    groups = merged_groups(bed.database.views["sales_1"], is_tail=True)
    assert sum(delta.measures[0] for delta in groups.values()) == 1200


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
async def test_killed_replays_leave_views_equal_to_the_orders(seed: int) -> None:
    bed = OperatorBed()
    orders = some_orders(60, hours=12)
    await bed.store(orders)
    definition = a_view(**LASTING)
    await bed.catalogue.ensure_views([definition])
    bed.cluster.put("replays", "it", {"view": "sales", "span": {}})
    await run_with_kills(bed, "replays", seed)
    groups = merged_groups(bed.database.views["sales_1"], is_tail=True)
    assert groups == compute_deltas(definition, orders)
    status = bed.status("replays", "it")
    assert (status["percent"], status["views"][0]["done"]) == (100, True)


async def test_a_replay_tells_the_rows_it_changed(bed: OperatorBed) -> None:
    await bed.store(some_orders(40, hours=6))
    for name in ("one", "two"):
        await bed.catalogue.ensure_views([a_view(name, **LASTING)])
    await bed.fill("one_1")
    bed.cluster.put("replays", "all", {})
    await bed.operator().replays.turn()
    status = bed.status("replays", "all")
    rows = len(bed.database.views["two_2"].rows)
    assert (status["rowsChanged"], len(status["views"])) == (rows, 2)
    assert status["chunksDone"] == status["chunksTotal"] > 0


async def test_a_replay_keeps_to_its_view_and_span(bed: OperatorBed) -> None:
    await bed.store(some_orders(60, hours=6))
    for name in ("one", "two"):
        await bed.catalogue.ensure_views([a_view(name, **LASTING)])
    start = (NOW_MS // 3_600_000 - 3) * 3600
    span = {"from": instant_text(start), "to": instant_text(start + 7200)}
    bed.cluster.put("replays", "some", {"view": "two", "span": span})
    await bed.operator().replays.turn()
    buckets = {group[1] for group in bed.database.views["two_2"].rows}
    assert buckets == {start, start + 3600}
    assert bed.database.views["one_1"].rows == {}
    assert bed.status("replays", "some")["views"][0]["rebuiltTo"] == instant_text(start + 7200)


async def test_a_replay_of_no_view_fails_and_says_which_there_are(bed: OperatorBed) -> None:
    await bed.catalogue.ensure_views([a_view()])
    bed.cluster.put("replays", "bad", {"view": "nothing"})
    await bed.operator().replays.turn()
    assert bed.condition("replays", "bad", "Complete") == ("False", "Failed")
    assert "sales" in bed.status("replays", "bad")["message"]


async def test_work_stops_when_its_object_is_deleted(bed: OperatorBed) -> None:
    await bed.store(dead=good_letters(5))
    bed.cluster.put("redrives", "mend", {"letters": {"all": True}})

    def delete(call: str) -> None:
        if call == "read":
            bed.cluster.objects.pop(("redrives", "mend"), None)

    bed.cluster.fault_hook = delete
    await bed.operator().redrives.turn()
    assert await sums(bed) == (5, 0, 0, 5)
    assert bed.cluster.events == []


async def test_a_finished_object_goes_after_its_time(bed: OperatorBed) -> None:
    bed.cluster.put("replays", "short", {"ttlSecondsAfterFinished": 60})
    bed.cluster.put("replays", "long", {})
    operator = bed.operator()
    await operator.replays.turn()
    await operator.replays.turn()
    assert ("replays", "short") in bed.cluster.objects
    bed.clock.at += 60 + LOOK_SECONDS
    await operator.replays.turn()
    assert set(bed.cluster.objects) == {("replays", "long")}
