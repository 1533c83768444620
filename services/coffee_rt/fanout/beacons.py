"""Notices what the fan-out missed: compares versions spoken of elsewhere with its own, and polls in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coffee_rt.channels.messages import Beacon
from coffee_rt.store.view_contract import LaneVersion

SILENCE_SECONDS = 3.0
"""The beacon comes every second; after so long without one, PostgreSQL is asked instead."""


Heard = dict[str, tuple[str, list[tuple[int, int]]]]
"""View -> (epoch, (lane, version) of each lane)."""


def heard_in_beacon(beacon: Beacon) -> Heard:
    return {
        view: (
            epoch,
            [(lane, state.version) for lane, state in enumerate(beacon.lanes.get(view, ()))],
        )
        for view, epoch in beacon.epochs.items()
    }


def heard_in_poll(epochs: Mapping[str, str], lanes: Iterable[LaneVersion]) -> Heard:
    heard: Heard = {view: (epoch, []) for view, epoch in epochs.items()}
    for lane in lanes:
        if lane.view in heard:
            heard[lane.view][1].append((lane.lane, lane.version))
    return heard
