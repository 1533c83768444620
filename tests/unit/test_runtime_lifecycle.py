"""A process drains on SIGTERM, ends loudly on a crash, and answers for its health meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, MutableMapping
from typing import Any, Literal

import aiohttp
import pytest
import structlog

from coffee_rt.fanout.settings import FanoutSettings
from coffee_rt.runtime.files import ensure_open_files
from coffee_rt.runtime.health import Health, health_app
from coffee_rt.runtime.lifecycle import Lifecycle, run, serve_http
from coffee_rt.runtime.logs import configure, mask
from coffee_rt.runtime.settings import ProcessSettings, SettingsError

SETTINGS = ProcessSettings(http_port=0, grace_seconds=0.3, log_format="json", open_files_min=64)


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_sigterm_drains_and_ends_with_0() -> None:
    steps: list[str] = []

    async def main(lifecycle: Lifecycle, _settings: ProcessSettings) -> None:
        lifecycle.health.set("work", True)
        os.kill(os.getpid(), signal.SIGTERM)
        await lifecycle.wait_drain()
        steps.append(f"drained, ready={lifecycle.health.is_ready}")

    assert run("till", main, SETTINGS) == 0
    assert steps == ["drained, ready=False"]


def test_crash_of_a_background_task_ends_the_process_with_1() -> None:
    async def broken() -> None:
        raise RuntimeError("cups are out")

    async def main(lifecycle: Lifecycle, _settings: ProcessSettings) -> None:
        lifecycle.spawn(broken(), "broken")
        await lifecycle.wait_drain()

    assert run("till", main, SETTINGS) == 1


def test_a_setting_found_wrong_later_ends_the_process_with_its_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def check() -> None:
        raise SettingsError("this log was installed with 4 shards")

    async def main(lifecycle: Lifecycle, _settings: ProcessSettings) -> None:
        lifecycle.spawn(check(), "check")
        await lifecycle.wait_drain()

    assert run("till", main, SETTINGS) == 2
    printed = "".join(capsys.readouterr())
    assert "this log was installed with 4 shards" in printed
    assert "Traceback" not in printed


def test_work_undone_at_the_end_of_the_grace_period_ends_with_1() -> None:
    async def main(lifecycle: Lifecycle, _settings: ProcessSettings) -> None:
        lifecycle.begin_drain()
        await asyncio.Event().wait()

    assert run("till", main, SETTINGS) == 1


def test_background_tasks_are_cancelled_at_the_end() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def main(lifecycle: Lifecycle, _settings: ProcessSettings) -> None:
        lifecycle.spawn(forever(), "forever")
        await lifecycle.clock.sleep(0)
        lifecycle.begin_drain()

    assert run("till", main, SETTINGS) == 0
    assert ended == ["cancelled"]


def test_settings_that_do_not_work_end_with_2_and_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def main(_lifecycle: Lifecycle, _settings: ProcessSettings) -> None:
        raise SettingsError("the shop is closed")

    assert run("till", main, SETTINGS) == 2
    assert "the shop is closed" in capsys.readouterr().out


async def test_health_routes_answer_and_follow_the_components() -> None:
    lifecycle = Lifecycle("till")
    serving = asyncio.create_task(serve_http(health_app(lifecycle.health), SETTINGS, lifecycle))
    base = "http://{}:{}".format(*await lifecycle.wait_listening())
    async with aiohttp.ClientSession() as session:

        async def status(path: str) -> int:
            async with session.get(base + path) as answer:
                return answer.status

        assert await status("/livez") == 200
        assert await status("/readyz") == 503
        lifecycle.health.set("database", True)
        assert await status("/readyz") == 200
        lifecycle.health.set("redis", False, "breaker open")
        async with session.get(base + "/readyz") as answer:
            assert answer.status == 503
            components = (await answer.json())["components"]
            assert components["redis"] == {"ready": False, "detail": "breaker open"}
        async with session.get(base + "/metrics") as answer:
            assert "coffee_rt_ready_ratio 0.0" in await answer.text()
        assert await status("/elsewhere") == 404
    lifecycle.begin_drain()
    await serving
    await lifecycle.stop_tasks()


async def test_port_in_use_is_a_plain_sentence() -> None:
    lifecycle = Lifecycle("till")
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = ProcessSettings(http_port=port)
    with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}"):
        await serve_http(health_app(lifecycle.health), settings, lifecycle)
    server.close()
    await server.wait_closed()
    await lifecycle.stop_tasks()


async def test_health_app_serves_as_a_mounted_application() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request"}

    await health_app(Health())({"type": "http", "path": "/livez"}, receive, send)
    assert sent[0]["status"] == 200
    assert json.loads(sent[1]["body"]) == {"status": "ok"}


def test_logs_are_json_with_secrets_masked(capsys: pytest.CaptureFixture[str]) -> None:
    log = configure("till", "till-1", log_format="json")
    try:
        raise OSError("no answer from redis://me:hunter2@cache/0")
    except OSError:
        log.exception("redis is away", url="redis://me:hunter2@cache/0", api_key="abc")
    logging.getLogger("library").warning("sent %s", "Bearer crt_k1_verysecret")
    first, second = capsys.readouterr().out.splitlines()
    event = json.loads(first)
    assert event["event"] == "redis is away"
    assert event["process"] == "till"
    assert event["instance"] == "till-1"
    assert "hunter2" not in first
    assert "verysecret" not in second
    assert mask("crt_k1_x-y_z") == "crt_k1_***"


@pytest.mark.parametrize("log_format", ["json", "pretty"])
def test_what_is_logged_is_one_line_without_orders_to_a_terminal(
    capsys: pytest.CaptureFixture[str], log_format: Literal["json", "pretty"]
) -> None:
    log = configure("test", log_format=log_format)
    log.warning("bad\x1b[2J", reason="\x1b]0;owned\x07\x9b31m", store="a\r\nlevel=error forged")
    logging.getLogger("library").warning("of %s", "a\r\nforged\x1b[31m")
    said = capsys.readouterr().out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", said)
    assert len(said.splitlines()) == 2


def test_too_few_open_files_are_a_plain_sentence() -> None:
    limit = ensure_open_files(64)
    assert limit == -1 or limit >= 64
    with pytest.raises(SettingsError, match="files may be open"):
        ensure_open_files(2**62)


def test_a_process_asks_for_as_many_open_files_as_it_allows_connections() -> None:
    settings = ProcessSettings(http_connections_max=5000, open_files_min=64)
    assert settings.open_files() >= 5000
    assert FanoutSettings(auth="off", sessions_max=20_000).open_files() >= 23_000
    assert ProcessSettings(open_files_min=100_000).open_files() == 100_000


async def test_a_task_that_swallows_one_cancellation_is_cancelled_again() -> None:
    lifecycle = Lifecycle("test")
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        swallowed.set()
        await asyncio.Event().wait()

    task = lifecycle.spawn(stubborn(), "stubborn")
    await asyncio.sleep(0)
    await asyncio.wait_for(lifecycle.stop_tasks(), 30)
    assert swallowed.is_set()
    assert task.done()


STUBBORN = """
import asyncio
from coffee_rt.runtime.lifecycle import run
from coffee_rt.runtime.settings import ProcessSettings

async def main(lifecycle, settings):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

raise SystemExit(run("stubborn", main, ProcessSettings(grace_seconds=0.2)))
"""


def test_a_process_ends_even_where_a_task_never_does() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    assert process.stdout is not None
    while b"starting" not in process.stdout.readline():
        assert process.poll() is None
    deadline = time.monotonic() + 60
    while process.poll() is None:
        # Again and again: the handler may not be in place yet.
        process.terminate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert process.returncode != 0
    process.stdout.close()
