"""Word of changed OrderPipelines: from kopf's watch to the tender, which then reads them anew.

Only word: an event that was missed costs one pause of the tender, never a wrong picture.
"""

from __future__ import annotations

import asyncio


class PipelineChanges:
    """Shared by the handler and the tender, in one loop."""

    def __init__(self) -> None:
        self._generations: dict[str, int] = {}
        self._changed = asyncio.Event()

    def note(self, uid: str, generation: int) -> None:
        """An object as it was seen. Only another spec wakes the tender: statuses are its own work."""
        if self._generations.get(uid) != generation:
            self._generations[uid] = generation
            self._changed.set()

    def forget(self, uid: str) -> None:
        if self._generations.pop(uid, None) is not None:
            self._changed.set()

    async def wait(self, seconds_max: float) -> None:
        """Until a spec changes, or so long."""
        try:
            async with asyncio.timeout(seconds_max):
                await self._changed.wait()
        except TimeoutError:
            return
        finally:
            self._changed.clear()
