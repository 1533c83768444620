"""A browser that watches while all is hurt, held against the database in the end (I7).

An observer follows the views by docs/protocol.md: snapshot, deltas, resume after a gap or a cut, another connection
after silence. It never gives up and never asks the database. What it shows is compared with the folded rows twice:
while orders flow, whether it has come as far as the database was when the platform had caught up; and at rest, row
by row. A version that goes back within an epoch is a problem wherever it happens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import asyncpg
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.pool import create_pool
from coffee_rt.store.view_fold import PostgresViewFolder
from tests.live_client import LiveView, WentBack

VIEWS = ("hourly", "minutely")
SINCE_SECONDS = 2 * 24 * 3600
"""Longer ago than any order of a recorder."""
SILENCE_SECONDS_MAX = 5.0
"""As the protocol tells every client: then connect again."""
PAUSE_SECONDS = 0.3
"""Between connections, and between requests to resume: a server hears 20 messages a second at most."""

Rows = dict[tuple[Any, ...], list[Any]]
"""(dimensions, bucket) -> measures."""


class Goal(msgspec.Struct, frozen=True):
    """How far a view has come in the database."""

    epoch: str
    versions: dict[int, int]

    def is_reached(self, view: LiveView) -> bool:
        return (
            not view.is_reset
            and view.epoch == self.epoch
            and all(view.versions[lane] >= version for lane, version in self.versions.items())
        )


class Observer:
    """One of a scenario, in the harness's own process. `start()` it, `close()` it."""

    def __init__(self, addresses: Sequence[str], api_key: str = "") -> None:
        self.views = {name: LiveView(number) for number, name in enumerate(VIEWS, 1)}
        self.connects = 0
        self.problems: list[str] = []
        self._addresses = addresses
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._since = int(time.time()) - SINCE_SECONDS
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._watching = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    async def _run(self) -> None:
        tries = 0
        while True:
            address = self._addresses[tries % len(self._addresses)]
            tries += 1
            try:
                async with connect(
                    address,
                    additional_headers=self._headers,
                    open_timeout=SILENCE_SECONDS_MAX,
                    close_timeout=0.1,
                    ping_interval=None,
                    max_size=None,
                ) as socket:
                    self.connects += 1
                    await self._watch(socket)
            except WentBack as error:
                self.problems.append(f"observer: a version went back: {error}")
                for view in self.views.values():
                    view.is_reset = True
            except (OSError, TimeoutError, EOFError, WebSocketException):
                pass  # What a browser does then: the next connection.
            await asyncio.sleep(PAUSE_SECONDS)

    async def _watch(self, socket: ClientConnection) -> None:
        """One connection, until it is worth nothing any more."""
        asked_at = dict.fromkeys(VIEWS, time.monotonic())
        for name in VIEWS:
            await self._subscribe(socket, name)
        while True:
            async with asyncio.timeout(SILENCE_SECONDS_MAX):
                message = msgspec.json.decode(await socket.recv())
            if message["type"] == "drain":
                await asyncio.sleep(message["retry_after_ms"] / 1000)
                return
            if message["type"] == "error":
                return
            for name, view in self.views.items():
                view.apply(message)
                if view.needs_resume and time.monotonic() > asked_at[name] + PAUSE_SECONDS:
                    asked_at[name] = time.monotonic()
                    await self._subscribe(socket, name)

    async def _subscribe(self, socket: ClientConnection, name: str) -> None:
        message = self.views[name].subscribe(f"view:{name}", since=self._since)
        await socket.send(msgspec.json.encode(message).decode())

    # Held against the database

    async def wait_reaches(self, goals: dict[str, Goal], seconds_max: float) -> None:
        """Until every view shown is as far as that. Raises TimeoutError."""
        await _wait(
            lambda: all(goal.is_reached(self.views[name]) for name, goal in goals.items()),
            seconds_max,
        )

    async def wait_equals(self, truth: dict[str, Rows], seconds_max: float) -> list[str]:
        """What is still shown wrong after so long; nothing, as soon as every row is right."""
        with suppress(TimeoutError):
            await _wait(lambda: not self._differences(truth), seconds_max)
        return self._differences(truth)

    def _differences(self, truth: dict[str, Rows]) -> list[str]:
        found = []
        for name, rows in truth.items():
            shown = self.views[name].values()
            wrong = sum(shown.get(key) != rows.get(key) for key in shown.keys() | rows.keys())
            if wrong:
                found.append(f"observer: {wrong} rows of view {name} differ from the database's")
        return found


async def _wait(is_so: Callable[[], bool], seconds_max: float) -> None:
    async with asyncio.timeout(seconds_max):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def read_goals(database: DatabaseSettings) -> dict[str, Goal]:
    pool = await create_pool(database)
    try:
        epochs, lanes = await PostgresViewFolder(pool).lane_versions()
    finally:
        await pool.close()
    return {
        name: Goal(epochs[name], {lane.lane: lane.version for lane in lanes if lane.view == name})
        for name in VIEWS
        if name in epochs
    }


async def read_rows(database: DatabaseSettings) -> dict[str, Rows]:
    """The folded rows, as a browser that misses nothing shows them."""
    connection = await asyncpg.connect(database.url)
    try:
        return {
            "hourly": await _rows(connection, "hourly", ("store", "drink"), "orders, quantity"),
            "minutely": await _rows(connection, "minutely", ("store",), "orders"),
        }
    finally:
        await connection.close()


async def _rows(
    connection: asyncpg.Connection, name: str, dimensions: tuple[str, ...], measures: str
) -> Rows:
    internal = await connection.fetchval(
        "SELECT internal FROM view_catalogue WHERE is_current AND name = $1", name
    )
    if internal is None:
        return {}
    groups = await connection.fetch(
        f"SELECT {', '.join(dimensions)}, extract(epoch FROM bucket)::bigint AS bucket,"
        f" {measures}, revenue FROM mv_{internal}"
    )
    at = len(dimensions) + 1
    return {tuple(group)[:at]: [int(value) for value in tuple(group)[at:]] for group in groups}
