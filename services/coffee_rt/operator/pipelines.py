"""The OrderPipeline objects of the namespace, as the watch last told of them.

They carry no finalizer: an uninstall that takes the operator first must not leave an object that nobody can
remove. What a deleted one leaves behind is seen from the autoscalers themselves (`tending.py`).
"""

from __future__ import annotations

import asyncio

from coffee_rt.operator.contract import CustomObject


class Pipelines:
    """Filled by the handler, read by the tender. Shared by both, in one loop."""

    def __init__(self) -> None:
        self._objects: dict[str, CustomObject] = {}
        self._changed = asyncio.Event()

    def put(self, found: CustomObject) -> None:
        """Remember what was seen; wakes the tender when the spec is another."""
        before = self._objects.get(found.ref.uid)
        self._objects[found.ref.uid] = found
        if before is None or before.generation != found.generation:
            self._changed.set()

    def forget(self, uid: str) -> None:
        if self._objects.pop(uid, None) is not None:
            self._changed.set()

    def clear(self) -> None:
        """At the start of each watch: what went while nobody watched is not told of."""
        self._objects.clear()

    def all(self) -> list[CustomObject]:
        """Oldest first: only the first is tended, because there is one log and one database."""
        return sorted(self._objects.values(), key=lambda one: (one.created_at, one.ref.name))

    async def wait_changed(self, seconds_max: float) -> None:
        """Until a spec changes, or so long."""
        try:
            async with asyncio.timeout(seconds_max):
                await self._changed.wait()
        except TimeoutError:
            return
        finally:
            self._changed.clear()
