"""How many bytes of bodies may be under way at once, whatever the number of requests."""

from __future__ import annotations

from coffee_rt.errors import Overload
from coffee_rt.order_api.metrics import BODIES_BYTES


class BodyRoom:
    """One of a process. Whoever takes gives back, whatever happens; see hot.HotApp."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._taken = 0
        BODIES_BYTES.set_function(lambda: self._taken)

    def take(self, size: int) -> None:
        """Raises Overload when there is no room. A body larger than all the room is let in alone."""
        if self._taken and self._taken + size > self._bytes_max:
            detail = "Too many bytes of other bodies are being read at the moment."
            raise Overload("bodies-full", detail, 1.0)
        self._taken += size

    def give(self, size: int) -> None:
        self._taken -= size
