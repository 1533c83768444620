"""A PostgreSQL that admits only clients with a certificate in their user's name.

The wheel's PostgreSQL has no TLS, so this is the machine's own, where it has one (Debian: `postgresql`).
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

from coffee_rt.embedded.launch import spawn
from coffee_rt.embedded.server_process import TEST, Server
from coffee_rt.embedded.servers import is_postmaster_ready
from tests.tls_front import Papers

USER = "coffee_rt"
_HBA = "hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-full\n"
PASSWORD = "test"


def programs() -> Path | None:
    """Folder of the machine's PostgreSQL with TLS, the newest; None where there is none."""
    folders = [path.resolve().parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if found := shutil.which("postgres"):
        folders.append(Path(found).resolve().parent)
    able = [each for each in folders if b"SSL_CTX_new" in (each / "postgres").read_bytes()]
    return max(able, key=_version, default=None)


def _version(folder: Path) -> int:
    told = subprocess.run([folder / "postgres", "--version"], capture_output=True, check=True)
    return int(told.stdout.split()[2].partition(b".")[0])


class CertifiedPostgres(Server):
    """Owned by a test; its data is thrown away."""

    name = "PostgreSQL"
    stop_signal = signal.SIGINT
    force_signal = signal.SIGQUIT

    def __init__(self, data_dir: Path, programs: Path, papers: Papers) -> None:
        super().__init__(data_dir, None, 0, TEST)
        self._programs = programs
        self._papers = papers

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/template1"

    def prepare(self) -> None:
        self.data_dir.mkdir(mode=0o700)
        papers = self.data_dir.with_name("papers")
        papers.mkdir(mode=0o700)
        named = {"ca": self._papers.ca, "cert": self._papers.served, "key": self._papers.served_key}
        for name, path in named.items():
            (papers / name).write_bytes(path.read_bytes())
            (papers / name).chmod(0o600)
        secret = papers / "password"
        secret.write_text(PASSWORD)
        if user := self._user():
            for path in (self.data_dir, papers, *papers.iterdir()):
                os.chown(path, *user)
        options = ["-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync"]
        command: list[str | Path] = [
            self._programs / "initdb",
            "-D",
            self.data_dir,
            "-E",
            "UTF8",
            *options,
        ]
        assert spawn(command, self.log, user=user).wait() == 0, self.log.read_text()
        (self.data_dir / "pg_hba.conf").write_text(_HBA)
        with (self.data_dir / "postgresql.conf").open("a") as conf:
            conf.write("ssl = on\nunix_socket_directories = ''\nfsync = off\n")
            for name in named:
                conf.write(f"ssl_{name}_file = '{papers / name}'\n")

    def spawn(self) -> subprocess.Popen[bytes]:
        command = (self._programs / "postgres", "-D", self.data_dir, "-p", str(self.port))
        return spawn(command, self.log, user=self._user(), death_signal=signal.SIGINT)

    def is_ready(self) -> bool:
        return is_postmaster_ready(self.data_dir, self.pid)

    def _user(self) -> tuple[int, int] | None:
        """It refuses to run as root."""
        if os.geteuid() != 0:
            return None
        entry = pwd.getpwnam("nobody")
        return entry.pw_uid, entry.pw_gid
