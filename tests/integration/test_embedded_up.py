"""`coffee-rt up` as its user meets it: two starts, a crash, a Ctrl-C, and what it says when it can't."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.integration

READY_SECONDS_MAX = 60.0
PARTS = ("order-api", "worker", "aggregator", "fanout", "query-api")


class Up:
    """A running `coffee-rt up` in a session of its own, with the lines it printed."""

    def __init__(self, data_dir: Path, *options: str) -> None:
        self.data_dir = data_dir
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "coffee_rt", "up", "--data-dir", str(data_dir), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            self.lines.extend(line.rstrip("\n") for line in output)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def address(self) -> str:
        return (self.data_dir / "address").read_text().strip()

    def pid_of(self, part: str) -> int:
        return int((self.data_dir / "pids" / part).read_text())

    def wait_ready(self) -> None:
        wait_for(lambda: "Dashboard:" in self._ended_or_text(), "ready")

    def _ended_or_text(self) -> str:
        assert self.process.poll() is None, self.text
        return self.text

    def press_ctrl_c(self) -> int:
        """What a terminal does: SIGINT to the whole foreground group. The exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(READY_SECONDS_MAX)
        self._reader.join(READY_SECONDS_MAX)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.wait()


@contextmanager
def running(data_dir: Path, *options: str) -> Iterator[Up]:
    """An `up` that is ready, killed at the end unless it was ended."""
    up = Up(data_dir, "--port", "0", *options)
    try:
        up.wait_ready()
        yield up
    finally:
        if up.process.poll() is None:
            up.kill()


def wait_for(is_true: Callable[[], bool], what: str) -> None:
    """Return once it holds; fail when it doesn't in time."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not is_true():
        assert time.monotonic() < deadline, f"not {what} in time"
        time.sleep(0.02)


def post_order(address: str, **fields: Any) -> dict[str, Any]:
    body = {"store": "uptown", "drink": "latte", "price": "4.50", **fields}
    request = urllib.request.Request(
        f"{address}/api/v1/orders?ack=stored",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


def orders_in_view(address: str) -> int:
    rows = get(f"{address}/api/v1/views/hourly?last=24h")["rows"]
    return sum(row["orders"] for row in rows)


def run_to_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coffee_rt", *arguments],
        capture_output=True,
        text=True,
        timeout=READY_SECONDS_MAX,
        check=False,
    )


def test_everything_answers_behind_one_address_and_data_stays(tmp_path: Path) -> None:
    with running(tmp_path / "data") as up:
        order_id = post_order(up.address)["order_id"]
        assert get(f"{up.address}/api/v1/orders/{order_id}")["drink"] == "latte"
        assert orders_in_view(up.address) == 1
        assert get(f"{up.address}/livez") == {"status": "ok"}
        for part in (*PARTS, "Valkey", "PostgreSQL"):
            assert any(line.split()[:2] == [part, "ready"] for line in up.lines), part
        assert up.press_ctrl_c() == 0, up.text
        assert up.lines[-1] == "Stopped."
    with running(tmp_path / "data") as up:
        assert get(f"{up.address}/api/v1/orders/{order_id}")["drink"] == "latte"
        assert orders_in_view(up.address) == 1
        assert up.press_ctrl_c() == 0, up.text
    assert not (tmp_path / "data" / "address").exists()


@pytest.mark.parametrize("part", ["worker", "PostgreSQL"])
def test_what_crashes_is_started_again_and_said_so(tmp_path: Path, part: str) -> None:
    with running(tmp_path) as up:
        post_order(up.address)
        os.kill(up.pid_of(part), signal.SIGKILL)
        wait_for(lambda: f"  {part:<11} ready again" in up.text, "ready again")
        assert f"{part} ended (signal SIGKILL); starting it again" in up.text
        wait_for(lambda: get_ready(up.address), "ready behind the address")
        post_order(up.address)
        wait_for(lambda: orders_in_view(up.address) == 2, "both orders in the view")
        assert up.press_ctrl_c() == 0, up.text


def get_ready(address: str) -> bool:
    try:
        return bool(get(f"{address}/readyz")["status"] == "ready")
    except OSError:
        return False


def test_killed_it_leaves_nothing_running_and_starts_again(tmp_path: Path) -> None:
    with running(tmp_path) as up:
        post_order(up.address)
        children = psutil.Process(up.process.pid).children(recursive=True)
        assert len(children) >= len(PARTS) + 3
        up.kill()
    _gone, alive = psutil.wait_procs(children, timeout=READY_SECONDS_MAX)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    with running(tmp_path) as up:
        assert orders_in_view(up.address) == 1
        assert up.press_ctrl_c() == 0, up.text


def test_a_signal_while_starting_stops_in_order(tmp_path: Path) -> None:
    up = Up(tmp_path, "--port", "0")
    wait_for(lambda: "is starting" in up.text, "starting")
    assert up.press_ctrl_c() == 0, up.text
    assert up.lines[-1] == "Stopped."


def test_a_third_view_is_kept_from_the_next_start_on(tmp_path: Path) -> None:
    views = tmp_path / "views"
    views.mkdir()
    (views / "by_store.yaml").write_text(
        "name: by_store\nbucket: day\ndimensions: [store]\n"
        "measures:\n  orders: count\n  revenue: {sum: revenue}\n"
    )
    with running(tmp_path / "data") as up:
        post_order(up.address)
        up.press_ctrl_c()
    with running(tmp_path / "data", "--views", str(views)) as up:
        post_order(up.address)

        def counted() -> int:
            rows = get(f"{up.address}/api/v1/views/by_store?last=48h")["rows"]
            return sum(row["orders"] for row in rows)

        wait_for(lambda: counted() == 2, "old and new order in the new view")
        up.press_ctrl_c()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One `up` with a simulated café for the tests that change nothing of it."""
    with running(tmp_path_factory.mktemp("up"), "--simulate", "50") as up:
        yield up
        assert up.press_ctrl_c() == 0, up.text


def test_the_simulation_posts_through_the_address(shared: Up) -> None:
    wait_for(lambda: orders_in_view(shared.address) > 20, "orders in the view")


def test_doctor_finds_a_running_up_in_order(shared: Up) -> None:
    done = run_to_end("doctor", "--data-dir", str(shared.data_dir))
    assert done.returncode == 0, done.stdout
    assert "Everything is fine." in done.stdout


def test_audit_finds_the_views_equal_to_the_orders(shared: Up) -> None:
    done = run_to_end("audit", "hourly", "--data-dir", str(shared.data_dir))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_nightly_audit_says_what_it_compared_and_how_far_it_is(shared: Up) -> None:
    done = run_to_end("audit", "--views-since=48h", "--data-dir", str(shared.data_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Compared 4 shards with ")
    assert " and 2 views in " in done.stdout
    told = {line.partition(":")[0] for line in done.stderr.splitlines()}
    assert told == {"shard 0", "shard 1", "shard 2", "shard 3", "hourly", "minutely"}


def test_a_key_is_shown_once(shared: Up) -> None:
    added = run_to_end("keys", "add", "till", "--data-dir", str(shared.data_dir))
    assert added.stdout.startswith("crt_"), added.stderr
    listed = run_to_end("keys", "list", "--data-dir", str(shared.data_dir))
    assert "till" in listed.stdout
    assert added.stdout.strip() not in listed.stdout
    key_id = added.stdout.split("_")[1]
    assert run_to_end("keys", "revoke", key_id, "--data-dir", str(shared.data_dir)).returncode == 0
    again = run_to_end("keys", "revoke", key_id, "--data-dir", str(shared.data_dir))
    assert again.returncode == 1
    assert key_id in again.stderr


def test_a_second_up_on_the_same_directory_is_refused(shared: Up) -> None:
    done = run_to_end("up", "--data-dir", str(shared.data_dir), "--port", "0")
    assert done.returncode == 1
    assert f"(process {shared.process.pid}) is running on" in done.stderr
    assert get(f"{shared.address}/livez") == {"status": "ok"}


def test_a_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_to_end("up", "--data-dir", str(tmp_path), "--port", port)
    assert done.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_to_end("up", "--data-dir", str(tmp_path / "file" / "data"), "--port", "0")
    assert done.returncode == 1
    assert "can't be written" in done.stderr
    assert "--data-dir" in done.stderr


def test_data_that_is_not_ours_is_a_sentence_and_stays(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("15\n")
    done = run_to_end("up", "--data-dir", str(tmp_path), "--port", "0")
    assert done.returncode == 1
    assert "holds data of PostgreSQL 15" in done.stderr
    assert (tmp_path / "postgres" / "PG_VERSION").read_text() == "15\n"


@pytest.mark.parametrize("server", ["redis", "database"])
def test_a_server_of_ones_own_that_is_away_is_a_sentence(tmp_path: Path, server: str) -> None:
    scheme = {"redis": "redis", "database": "postgresql"}[server]
    url = f"{scheme}://me:secret@127.0.0.1:1/0"
    done = run_to_end("up", "--data-dir", str(tmp_path), "--port", "0", f"--{server}-url", url)
    assert done.returncode == 1
    assert "can't be" in done.stderr
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr


def test_servers_of_ones_own_are_used_instead(
    tmp_path: Path, valkey_url: str, database_url: str
) -> None:
    with running(tmp_path, "--redis-url", valkey_url, "--database-url", database_url) as up:
        post_order(up.address)
        assert orders_in_view(up.address) == 1
        assert not (tmp_path / "postgres").exists()
        assert not (tmp_path / "valkey").exists()
        assert up.press_ctrl_c() == 0, up.text
