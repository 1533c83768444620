"""Handlers of MetricView, Redrive and Replay: they tell the tenders, and take leave of a deleted view.

Only MetricView has a finalizer, because deleting it may have to drop tables. A one-shot object leaves nothing
behind, and must be deletable where the operator is gone.
"""

from __future__ import annotations

from typing import Any

import kopf

from coffee_rt.errors import Retryable
from coffee_rt.operator import metric_views, redriving, replaying
from coffee_rt.operator.cluster import parse_object
from coffee_rt.operator.contract import GROUP, VERSION
from coffee_rt.operator.pipelines import PipelineChanges
from coffee_rt.operator.wiring import Operator

DELETE_AGAIN_SECONDS = 5.0
KINDS = (metric_views.PLURAL, redriving.PLURAL, replaying.PLURAL)


def register(registry: kopf.OperatorRegistry) -> None:
    """Watch the three kinds; keep MetricViews until their view is let go of."""
    on_event = kopf.on.event
    on_event(GROUP, VERSION, metric_views.PLURAL, registry=registry, id="views")(see_view)
    on_event(GROUP, VERSION, redriving.PLURAL, registry=registry, id="redrives")(see_redrive)
    on_event(GROUP, VERSION, replaying.PLURAL, registry=registry, id="replays")(see_replay)
    kopf.on.delete(GROUP, VERSION, metric_views.PLURAL, registry=registry, id="let-go")(let_go)


async def see_view(event: kopf.RawEvent, memo: Operator, **_: Any) -> None:
    _note(event, memo.objects.metric_views.changes)


async def see_redrive(event: kopf.RawEvent, memo: Operator, **_: Any) -> None:
    _note(event, memo.objects.redrives.changes)


async def see_replay(event: kopf.RawEvent, memo: Operator, **_: Any) -> None:
    _note(event, memo.objects.replays.changes)


def _note(event: kopf.RawEvent, changes: PipelineChanges) -> None:
    """Tell the tender, which reads the objects anew."""
    metadata: Any = event["object"]["metadata"]
    if event["type"] == "DELETED":
        changes.forget(metadata["uid"])
    else:
        changes.note(metadata["uid"], metadata.get("generation", 0))


async def let_go(body: kopf.Body, memo: Operator, **_: Any) -> None:
    """Drop or keep the view of a deleted object; again until it is done."""
    try:
        await memo.objects.metric_views.remove(parse_object(body))
    except Retryable as error:
        raise kopf.TemporaryError(str(error), delay=DELETE_AGAIN_SECONDS) from None
