"""Real processes given secrets, and everything they let out: logs, answers, their command lines."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil

from coffee_rt.embedded.server_process import free_port

PROCESSES = ("order-api", "query-api", "fanout", "worker", "aggregator")
WAIT_SECONDS = 60.0


class Started:
    """One process, writing to a log of its own."""

    def __init__(self, name: str, folder: Path, environ: dict[str, str]) -> None:
        folder.mkdir(exist_ok=True)
        self.name = name
        self.log = folder / f"{name}.log"
        self.port, self.socket_port = free_port(), free_port()
        own = {
            "COFFEE_RT_HTTP_PORT": str(self.port),
            "COFFEE_RT_FANOUT_WEBSOCKET_PORT": str(self.socket_port),
            "COFFEE_RT_LOG_LEVEL": "debug",
            "COFFEE_RT_LOG_FORMAT": "json",
        }
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command(name), env=clean_environ() | own | environ, stdout=output, stderr=output
            )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def written(self) -> str:
        return self.log.read_text()

    def command_lines(self) -> str:
        process = psutil.Process(self.process.pid)
        family = [process, *process.children(recursive=True)]
        return "\n".join(" ".join(member.cmdline()) for member in family)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coffee_rt", *arguments]


def clean_environ() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("COFFEE_RT_")}


@asynccontextmanager
async def started(
    folder: Path, environ: dict[str, str], names: Iterable[str] = PROCESSES
) -> AsyncIterator[dict[str, Started]]:
    """Ended in an orderly way when left, so that the logs are whole then."""
    running = {name: Started(name, folder, environ) for name in names}
    try:
        yield running
    finally:
        for one in running.values():
            one.process.send_signal(signal.SIGTERM)
        for one in running.values():
            try:
                await asyncio.to_thread(one.process.wait, WAIT_SECONDS)
            finally:
                one.process.kill()


async def until_answered(client: aiohttp.ClientSession, url: str, *statuses: int) -> str:
    """Ask until the status is one of these; what was said then."""
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            try:
                async with client.get(url) as reply:
                    if reply.status in statuses:
                        return await reply.text()
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.1)


async def until_written(one: Started, *words: str) -> None:
    """Until its log has one of the words."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not any(word in one.written() for word in words):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def told(*arguments: str, **environ: str) -> str:
    """Everything one run of the command prints."""
    done = subprocess.run(
        command(*arguments),
        env=clean_environ() | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stdout
    return done.stdout
