"""Handlers of OrderPipeline: they only tell the tender, which does the work (`tending.py`)."""

from __future__ import annotations

from typing import Any, cast

import kopf

from coffee_rt.operator.contract import GROUP, VERSION
from coffee_rt.operator.wiring import Operator

PLURAL = "orderpipelines"


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch, and nothing else: an `event` handler leaves no finalizer and no annotation."""
    kopf.on.event(GROUP, VERSION, PLURAL, registry=registry, id="pipelines")(on_event)


async def on_event(event: kopf.RawEvent, memo: Operator, **_: Any) -> None:
    """Tell the tender."""
    metadata = event["object"]["metadata"]
    if event["type"] == "DELETED":
        memo.pipeline_changes.forget(metadata["uid"])
    else:
        memo.pipeline_changes.note(metadata["uid"], cast(Any, metadata).get("generation", 0))
