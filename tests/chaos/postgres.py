"""A PostgreSQL with a scenario's own settings, whose power can fail in the middle of its write-ahead log.

A kill -9 loses nothing that was written, because the page cache survives it. So strace holds up each fdatasync (or lets
some fail) and writes down every write to the log with its bytes; the server is killed; and the log's files are put back
to what had been on disk: what they held before, and every write that a finished fdatasync was called after. Data files
stay as they are, which a power cut may do: PostgreSQL writes a page only when its log is on disk.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil

from coffee_rt.embedded.servers import EmbeddedPostgres

SEGMENT_BYTES = 16 << 20
TRACE_SECONDS_MAX = 20.0

_LINE = re.compile(r"(\d+) +(.*)")
_WRITE = re.compile(r'pwrite64\(\d+<([^>]*)>, "([^"]*)", \d+, (\d+)')
_SYNC = re.compile(r"fdatasync\(\d+<([^>]*)>")
_SEGMENT = re.compile(r"[0-9A-F]{24}")

Write = tuple[int, bytes]
"""(where in the file, what)."""


class ChaosPostgres(EmbeddedPostgres):
    """The embedded server, under strace when asked."""

    def __init__(self, data_dir: Path, *, port: int = 0, settings: dict[str, str]) -> None:
        super().__init__(data_dir, port=port)
        self.extra_settings = settings
        self.faults: tuple[str, ...] | None = None
        """From the next start on: what strace does to system calls; None: no strace."""
        self.trace = self.data_dir.with_suffix(".strace")

    @property
    def segments(self) -> dict[str, Path]:
        """Files of the write-ahead log."""
        files = (self.data_dir / "pg_wal").iterdir()
        return {file.name: file for file in files if _SEGMENT.fullmatch(file.name)}

    def read_segments(self) -> dict[str, bytes]:
        return {name: file.read_bytes() for name, file in self.segments.items()}

    def wait_trace(self) -> str:
        """What strace has written, once it has ended as all that it traced."""
        deadline = time.monotonic() + TRACE_SECONDS_MAX
        while any(self._is_strace(process) for process in psutil.process_iter()):
            if time.monotonic() > deadline:
                raise RuntimeError("strace did not end with the server")
            time.sleep(0.05)
        return self.trace.read_text()

    def _is_strace(self, process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return process.name() == "strace" and str(self.trace) in process.cmdline()
        return False

    def cut_back(self, before: dict[str, bytes]) -> int:
        """Leave of the log what was on disk, by strace's account of a run that began with `before`; how many
        bytes were not."""
        synced, unsynced = synced_writes(self.wait_trace().splitlines())
        for name, file in self.segments.items():
            image = bytearray(before.get(name, bytes(SEGMENT_BYTES)))
            for place, data in synced.get(name, ()):
                image[place : place + len(data)] = data
            with file.open("r+b") as stream:
                stream.write(image)
        return unsynced

    def _settings(self) -> dict[str, str]:
        return super()._settings() | self.extra_settings

    def _command(self) -> list[str | Path]:
        command = super()._command()
        if self.faults is None:
            return command
        strace = shutil.which("strace")
        if strace is None:
            raise RuntimeError("strace is missing. On Debian: apt-get install strace")
        self.trace.write_bytes(b"")
        owner = self.data_dir.stat()
        os.chown(self.trace, owner.st_uid, owner.st_gid)
        # -DD: the server is our child, and strace outlives it, to write down all there was.
        options: list[str | Path] = [strace, "-DD", "-f", "--seccomp-bpf", "-q", "-y", "-xx"]
        options += ["-s", str(SEGMENT_BYTES), "-o", self.trace]
        options += ["-e", "trace=pwrite64,fdatasync", "-e", "signal=none"]
        for fault in self.faults:
            options += ["-e", f"inject={fault}"]
        return [*options, *command]


def synced_writes(lines: Iterable[str]) -> tuple[dict[str, list[Write]], int]:
    """(writes to each segment that are on disk, in order; bytes of those that are not).

    On disk is what was written before an fdatasync was called that came back without an error.
    """
    written: dict[str, list[Write]] = {}
    synced: dict[str, int] = {}
    calls: dict[str, tuple[str, int]] = {}
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            continue
        pid, call = found.groups()
        if write := _WRITE.match(call):
            # Taken as written when called: an fdatasync of another process can't be sure of it, but none is
            # called while the log's lock is held for the write.
            name = _name(write[1])
            if not _SEGMENT.fullmatch(name):
                continue  # A data file, by a process whose log is on disk.
            written.setdefault(name, []).append((int(write[3]), _bytes(write[2])))
        elif sync := _SYNC.match(call):
            name = _name(sync[1])
            calls[pid] = name, len(written.get(name, ()))
        if "fdatasync" in call and re.search(r"= 0( \(DELAYED\))?$", call) and pid in calls:
            name, count = calls.pop(pid)
            synced[name] = max(synced.get(name, 0), count)
    on_disk = {name: writes[: synced.get(name, 0)] for name, writes in written.items()}
    lost = sum(
        len(data) for name, writes in written.items() for _, data in writes[synced.get(name, 0) :]
    )
    return on_disk, lost


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _name(path: str) -> str:
    return _bytes(path).decode(errors="replace").rpartition("/")[2]
