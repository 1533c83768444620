"""What `coffee-rt up` decides before anything runs: ports, settings, routes, logs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

from coffee_rt.embedded import directory as directories
from coffee_rt.embedded.directory import DataDirectory, running_environment
from coffee_rt.embedded.log_tail import SHOWN_MAX, LogTail
from coffee_rt.embedded.plan import (
    PROCESSES,
    UpOptions,
    address_of,
    process_environ,
    reserve_ports,
    shared_environ,
)
from coffee_rt.embedded.proxy import Upstreams, caddy_command, plan_configuration
from coffee_rt.embedded.server_process import ServerProblem, free_port
from coffee_rt.embedded.tables import settings_class
from coffee_rt.runtime.environment import load

OPTIONS = UpOptions(Path("data"))


def test_every_part_gets_a_port_of_its_own() -> None:
    ports = astuple(reserve_ports("127.0.0.1", 0))
    assert len(set(ports)) == len(ports)


def test_a_taken_port_is_named_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerProblem, match=f"Port {port} .* in use .* --port"):
            reserve_ports("127.0.0.1", port)


def test_a_host_that_is_not_ours_is_named() -> None:
    with pytest.raises(ServerProblem, match="--host"):
        reserve_ports("192.0.2.1", 0)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_each_process_can_load_what_it_is_given(process: str, host: str) -> None:
    options = UpOptions(Path("data"), host=host, views_dir=Path("views"))
    ports = reserve_ports("127.0.0.1", 0)
    environ = shared_environ(options, "redis://127.0.0.1:1/0", "postgresql://127.0.0.1:1/x")
    settings = load(settings_class(process), environ | process_environ(options, ports, process))
    assert settings.http_port == ports.http_of(process)
    assert settings.auth == ("off" if host == "127.0.0.1" else "required")


def test_the_address_is_one_a_browser_here_can_open() -> None:
    assert address_of(OPTIONS, 8080) == "http://127.0.0.1:8080"
    assert address_of(UpOptions(Path("data"), host="0.0.0.0"), 80) == "http://127.0.0.1:80"
    assert address_of(UpOptions(Path("data"), host="::1"), 80) == "http://[::1]:80"


def _target(method: str, path: str) -> int:
    """The port that the planned configuration sends a request to, by Caddy's own rules for `path`."""
    plan = plan_configuration("127.0.0.1", 1, Upstreams(10, 20, 30, 40))
    routes: list[dict[str, Any]] = plan["apps"]["http"]["servers"]["one_address"]["routes"]
    for route in routes:
        for match in route.get("match", [{}]):
            paths = match.get("path", ["/*"])
            is_path = any(
                path == pattern or (pattern.endswith("*") and path.startswith(pattern[:-1]))
                for pattern in paths
            )
            if is_path and method in match.get("method", [method]):
                return int(route["handle"][0]["upstreams"][0]["dial"].rpartition(":")[2])
    raise AssertionError("no route")


@pytest.mark.parametrize(
    ("method", "path", "port"),
    [
        ("POST", "/api/v1/orders", 10),
        ("POST", "/api/v1/orders/batch", 10),
        ("GET", "/api/v1/orders/openapi.json", 10),
        ("GET", "/api/query/openapi.json", 20),
        ("POST", "/api/order", 10),
        ("POST", "/api/v1/order", 10),
        ("POST", "/api/v2/order", 10),
        ("POST", "/api/v3/order", 10),
        ("GET", "/livez", 10),
        ("GET", "/readyz", 10),
        ("GET", "/metrics", 10),
        ("GET", "/api/v1/orders", 20),
        ("GET", "/api/v1/orders/0197a0e0-0000-7000-8000-000000000000", 20),
        ("GET", "/api/v1/views/hourly/top", 20),
        ("GET", "/api/dashboard", 20),
        ("GET", "/api/v1/dead-letters", 20),
        ("PUT", "/api/v1/dead-letters/7", 20),
        ("POST", "/api/v1/dead-letters/7/redrive", 20),
        ("GET", "/api/v1/live", 30),
        ("GET", "/", 30),
        ("GET", "/assets/index.js", 30),
        ("GET", "/ws", 40),
        ("GET", "/ws/dashboard", 40),
    ],
)
def test_one_address_routes_to_the_process_that_answers(method: str, path: str, port: int) -> None:
    assert _target(method, path) == port


def test_caddy_accepts_the_configuration(tmp_path: Path) -> None:
    plan = plan_configuration("127.0.0.1", 8080, Upstreams(10, 20, 30, 40))
    configuration = tmp_path / "caddy.json"
    configuration.write_text(json.dumps(plan))
    caddy = caddy_command(configuration)[0]
    done = subprocess.run(
        [caddy, "validate", "--config", configuration],
        env={"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_caddy_says_itself_is_a_problem_that_no_browser_guesses_at(tmp_path: Path) -> None:
    port, nobody = free_port(), free_port()
    configuration = tmp_path / "caddy.json"
    plan = plan_configuration("127.0.0.1", port, Upstreams(nobody, nobody, nobody, nobody))
    configuration.write_text(json.dumps(plan))
    with (tmp_path / "caddy.log").open("wb") as log:
        caddy = subprocess.Popen(
            caddy_command(configuration), env={"HOME": str(tmp_path)}, stdout=log, stderr=log
        )
    try:
        with pytest.raises(HTTPError) as caught:
            asked_until_it_listens(f"http://127.0.0.1:{port}/")
        assert caught.value.code == 503
        assert caught.value.headers["X-Content-Type-Options"] == "nosniff"
        assert caught.value.headers["Retry-After"] == "1"
        assert json.load(caught.value)["type"] == "urn:coffee-rt:problem:process-away"
    finally:
        caddy.terminate()
        caddy.wait(20)


def asked_until_it_listens(url: str) -> None:
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        try:
            urlopen(url, timeout=20).close()
        except HTTPError:
            raise
        except URLError:
            time.sleep(0.05)


def test_a_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    first.open()
    with pytest.raises(ServerProblem, match=rf"process {os.getpid()}\) is running on"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerProblem, match="can't be written"):
        DataDirectory(tmp_path / "file" / "data").open()


def test_the_environment_is_for_the_owner_and_only_while_running(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.open()
    environ = {"COFFEE_RT_REDIS_URL": "redis://:p'w d@127.0.0.1:1/0"}
    directory.write_environment(environ)
    assert running_environment(tmp_path) == environ
    assert (tmp_path / "environment").stat().st_mode & 0o077 == 0
    directory.close()
    assert running_environment(tmp_path) is None


def test_logs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "LOG_BYTES_MAX", 100)
    directory = DataDirectory(tmp_path)
    directory.open()
    log = directory.log("worker")
    log.write_bytes(b"x" * 150)
    directory.bound_logs()
    assert log.stat().st_size == 0
    assert (tmp_path / "logs" / "worker.log.1").stat().st_size == 100
    directory.close()


def _write(log: Path, **event: str) -> None:
    with log.open("a") as file:
        file.write(json.dumps(event) + "\n")


def test_new_errors_of_a_child_are_told_in_plain_words(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    _write(log, level="error", event="before our time")
    tail = LogTail(log)
    _write(log, level="info", event="stored")
    _write(log, level="error", event="cannot store", reason="the database is away")
    assert tail.new_errors() == ["cannot store: the database is away"]
    assert tail.new_errors() == []


def test_a_flood_of_errors_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    tail = LogTail(log)
    for number in range(SHOWN_MAX * 3):
        _write(log, level="error", event=f"failed {number}")
    assert len(tail.new_errors()) == SHOWN_MAX


def test_why_a_process_refused_to_start_is_found(tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    _write(log, level="error", event="cannot start", reason="the port is in use")
    assert LogTail(log, from_start=True).last_reason() == "the port is in use"
