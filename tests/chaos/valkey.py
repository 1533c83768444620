"""A Valkey whose configuration and disk a scenario may change, and whose power can fail.

A kill -9 loses nothing that was written: the page cache survives it. So a power cut is made of three things: strace
holds up each fdatasync of the append-only file and writes down every write and every fdatasync; the server is killed;
and the file is cut back to what had been synced by then.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from coffee_rt.embedded.launch import spawn
from coffee_rt.embedded.servers import EmbeddedValkey

_WRITE = re.compile(r"\bwrite\(\d+, .*\)\s+= (\d+)")
_WRITE_RESUMED = re.compile(r"<\.\.\. write resumed>.*= (\d+)")
_SYNC = re.compile(r"\bfdatasync\(\d+\)\s+= 0")
_SYNC_BEGUN = re.compile(r"\bfdatasync\(\d+ <unfinished")
_SYNC_RESUMED = re.compile(r"<\.\.\. fdatasync resumed>\)\s+= 0")


class ChaosValkey(EmbeddedValkey):
    """The embedded server with a scenario's own settings, under strace when asked."""

    def __init__(self, data_dir: Path, *, port: int, settings: dict[str, str]) -> None:
        super().__init__(data_dir, port=port)
        self.extra_settings = settings
        self.is_traced = False
        """From the next start on: run under strace."""
        self.sync_delay_seconds = 0.0
        """Of each fdatasync, from the next start on."""
        self.trace = self.data_dir.with_suffix(".strace")

    @property
    def append_file(self) -> Path:
        """The file that appends go to; it stays the same, as no scenario writes enough for a rewrite."""
        return self.data_dir / "appendonlydir" / "appendonly.aof.1.incr.aof"

    def spawn(self) -> subprocess.Popen[bytes]:
        process_settings = self._settings() | self.extra_settings
        conf = self.data_dir / "valkey.conf"
        conf.touch(mode=0o600)
        lines = (f"{name} {value}\n" for name, value in process_settings.items())
        conf.write_text("".join(lines))
        command: list[str | Path] = [_server_program(), conf]
        if self.is_traced and self.append_file.exists():
            command = [*self._strace(), *command]
        return spawn(command, self.log)

    def _strace(self) -> list[str | Path]:
        strace = shutil.which("strace")
        if strace is None:
            raise RuntimeError("strace is missing. On Debian: apt-get install strace")
        options: list[str | Path] = [strace, "-f", "-q", "-o", self.trace]
        # Only what touches the file: everything else runs at full speed.
        options += ["-P", self.append_file, "-s", "0", "-e", "trace=write,fdatasync"]
        if self.sync_delay_seconds:
            micros = int(self.sync_delay_seconds * 1_000_000)
            options += ["-e", f"inject=fdatasync:delay_enter={micros}"]
        return options


def synced_bytes(trace: str, size_before: int, *, is_sure: bool) -> int:
    """Length of the append-only file that is on disk, by strace's account of a run.

    `is_sure`: only what was written before an fdatasync that came back was *called*. Else also what was written
    until it *came back*, which the held-up call may have covered: never more is lost than this says.
    """
    size = durable = size_before
    at_call = size_before
    for line in trace.splitlines():
        if found := _WRITE.search(line) or _WRITE_RESUMED.search(line):
            size += int(found[1])
        elif _SYNC_BEGUN.search(line):
            at_call = size
        elif _SYNC_RESUMED.search(line):
            durable = at_call if is_sure else size
        elif _SYNC.search(line):
            durable = size
    return durable


def _server_program() -> Path:
    from coffee_rt.embedded import servers

    return servers._valkey_server()
