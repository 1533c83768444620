"""Sharing lanes among instances."""

from __future__ import annotations

from coffee_rt.aggregator.lanes import LaneShare, owner_of
from coffee_rt.store.view_contract import LaneKey, LaneWork


def test_lanes_are_shared_evenly_and_only_a_leavers_lanes_move() -> None:
    subjects = [f"view/{lane}" for lane in range(300)]
    three = {subject: owner_of(subject, ["a", "b", "c"]) for subject in subjects}
    two = {subject: owner_of(subject, ["a", "b"]) for subject in subjects}
    for member in "abc":
        assert 60 < sum(owner == member for owner in three.values()) < 140
    assert all(two[s] == three[s] for s in subjects if three[s] != "c")
    assert owner_of("view/1", []) is None


def test_a_lane_is_stolen_when_its_owner_leaves_it_waiting() -> None:
    share = LaneShare("one", steal_seconds=1.0)
    share.set_members(["one", "two"])
    keys = [LaneKey("v", lane) for lane in range(16)]
    theirs = next(key for key in keys if not share.is_my_lane(key))
    mine = next(key for key in keys if share.is_my_lane(key))
    works = [LaneWork(theirs, 1, 0.0, version=5), LaneWork(mine, 1, 0.0, version=2)]
    assert share.choose(works, 10.0) == ({mine}, set())
    assert share.choose(works, 10.9) == ({mine}, set())
    assert share.choose(works, 11.0) == ({mine}, {theirs})
    moved = [LaneWork(theirs, 1, 0.0, version=6)]
    assert share.choose(moved, 11.1) == (set(), set())
    assert share.choose([], 11.5) == (set(), set())
    assert share.choose(moved, 12.2) == (set(), set())
