"""Start a child that can't outlive its parent, as another user where it must not be root.

In comes a command; out comes a running process in its own process group (a Ctrl-C on the terminal reaches
only the supervisor, which stops its children in order), with its output in a log file, that the kernel
signals when the parent dies. This file is also the small program that runs in between: it changes the
user and asks for the signal, then becomes the command. It imports nothing of coffee_rt, so that it takes
milliseconds.

Children must be spawned by the main thread: the kernel sends the signal when the spawning *thread* ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


def spawn(
    command: Sequence[str | Path],
    log: Path,
    *,
    user: tuple[int, int] | None = None,
    environ: Mapping[str, str] | None = None,
    death_signal: signal.Signals = signal.SIGTERM,
    stdin: bytes = b"",
) -> subprocess.Popen[bytes]:
    """Start `command` with its output appended to `log`; `user` is (uid, gid), None keeps ours.

    `environ` None means ours. `stdin` must fit a pipe (a few KB). Raises OSError when the log can't
    be written.
    """
    uid, gid = user if user else (-1, -1)
    launcher: list[str | Path] = [sys.executable, "-I", "-S", __file__]
    arguments = [str(os.getpid()), str(int(death_signal)), str(uid), str(gid)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*launcher, *arguments, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environ is None else dict(environ),
            start_new_session=True,
        )
    assert process.stdin is not None
    with process.stdin as pipe:
        pipe.write(stdin)
    return process


def signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a spawned process and everything it started; nothing happens when it has ended."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _keep_file_access(libc: ctypes.CDLL) -> None:
    """Let the next program open files below directories that only root may enter.

    A clone in /root is unreachable for every other user, and PostgreSQL refuses to be root. Where the
    capability is missing (a container without it) the program starts without and says itself what it
    can't reach.
    """
    mask = 1 << _CAP_DAC_OVERRIDE
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    data = struct.pack("=IIIIII", mask, mask, mask, 0, 0, 0)
    if libc.capset(header, data) == 0:
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def _become(command: list[str], parent: int, death_signal: int, uid: int, gid: int) -> None:
    linux = sys.platform == "linux"
    libc = ctypes.CDLL(None, use_errno=True) if linux else None
    if uid >= 0:
        if libc:
            libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        if libc:
            _keep_file_access(libc)
    if libc:
        # After the change of user, which clears it.
        libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    _parent, _death_signal, _uid, _gid = map(int, sys.argv[1:5])
    _become(sys.argv[5:], _parent, _death_signal, _uid, _gid)
