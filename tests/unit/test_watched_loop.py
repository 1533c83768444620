"""A connection that a test leaves open is an error of that test, not of one that runs when it is collected."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LEAKY = """
import asyncio

async def test_leaves_one_open():
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    await asyncio.get_running_loop().create_connection(Kept, *address)
    server.close()

async def test_leaves_none():
    pass

class Kept(asyncio.Protocol):
    def eof_received(self):
        return True
"""


def test_connections_left_open_are_named_with_the_test_that_left_them(tmp_path: Path) -> None:
    file = tmp_path / "test_leaky.py"
    file.write_text(LEAKY)
    options: list[str | Path] = [
        "-p",
        "tests.conftest",
        "-c",
        ROOT / "pyproject.toml",
        "--rootdir",
        tmp_path,
    ]
    command: list[str | Path] = [sys.executable, "-m", "pytest", *options, file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    summary = done.stdout.partition("short test summary info")[2]
    assert "test_leaky.py::test_leaves_one_open" in summary
    assert "test_leaves_none" not in summary
    assert "connections that nobody closed" in done.stdout
    assert "of <test_leaky.Kept object" in done.stdout
