"""Handlers of OrderPipeline: they only note what is there. `tending.py` does the work."""

from __future__ import annotations

from typing import Any

import kopf

from coffee_rt.operator.cluster import parse_object
from coffee_rt.operator.contract import GROUP, VERSION
from coffee_rt.operator.wiring import Operator

PLURAL = "orderpipelines"


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch, and nothing else: an `event` handler leaves no finalizer and no annotation."""
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id="pipelines")(on_event)


async def on_event(event: kopf.RawEvent, memo: Operator, **_: Any) -> None:
    """Note an object, or forget it."""
    found = parse_object(event["object"])
    if event["type"] == "DELETED":
        memo.pipelines.forget(found.ref.uid)
    else:
        memo.pipelines.put(found)
