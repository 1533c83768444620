"""Sessions that fanout pods serve, from each pod's own /metrics. Pods are asked directly, not by their
Service: that would answer for one of them.

No other source knows them: they live in the pods' memory, and a pod that is not scraped by anybody still
answers here. A pod that does not answer is counted as unknown, never as none.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from coffee_rt.operator import metrics
from coffee_rt.operator.contract import PodAddress

ANSWER_SECONDS_MAX = 2.0
PODS_AT_ONCE_MAX = 16
_SAMPLE = re.compile(r"^coffee_rt_fanout_sessions_count(?:\{[^}]*\})? ([0-9.eE+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SessionCounts:
    """Sessions of the pods that answered, and how many did not."""

    sessions: int
    pods_silent: int


def parse_sessions(text: str) -> int:
    """Sessions of all kinds in a pod's metrics."""
    return round(sum(float(value) for value in _SAMPLE.findall(text)))


class SessionCounter:
    """Asks pods. Owned by the wiring; one connection a pod and question."""

    def __init__(self) -> None:
        self._at_once = asyncio.Semaphore(PODS_AT_ONCE_MAX)

    async def count(self, pods: Sequence[PodAddress]) -> SessionCounts:
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            counts = await asyncio.gather(*(self._ask(session, pod) for pod in pods))
        known = [count for count in counts if count is not None]
        return SessionCounts(sum(known), len(counts) - len(known))

    async def _ask(self, session: aiohttp.ClientSession, pod: PodAddress) -> int | None:
        host = f"[{pod.host}]" if ":" in pod.host else pod.host
        try:
            async with (
                self._at_once,
                session.get(f"http://{host}:{pod.port}/metrics") as response,
            ):
                response.raise_for_status()
                return parse_sessions(await response.text())
        except (aiohttp.ClientError, OSError, TimeoutError):
            metrics.FAILURES.labels("pods").inc()
            return None
