"""A Kubernetes API server with nothing behind it: etcd and kube-apiserver, for tests of the operator.

From the program that `k8s-tests/cluster/cluster build` leaves in the cache. Objects are stored, validated
and watched as in any cluster; nothing runs pods. A token of an administrator, and tokens of accounts with
fewer rights, lead into it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

START_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 20.0


def program() -> Path | None:
    """The one program with every component of Kubernetes, if it was built."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("COFFEE_RT_CACHE") or Path(cache) / "coffee-rt")
    found = folder / "bin" / "kubernetes"
    return found if found.exists() else None


class ApiServer:
    """Owned by a test session; `stop` ends both processes. A stopped one starts again with its objects."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._token = secrets.token_hex(16)
        folder.mkdir(parents=True, exist_ok=True)
        self._port, self._etcd, self._peer = _free_port(), _free_port(), _free_port()
        key = folder / "accounts.key"
        subprocess.run(
            ["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True
        )
        (folder / "tokens.csv").write_text(f'{self._token},admin,admin,"system:masters"\n')

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    def start(self) -> None:
        self.start_etcd()
        self.start_server()

    def start_etcd(self) -> None:
        client = f"http://127.0.0.1:{self._etcd}"
        peer = f"http://127.0.0.1:{self._peer}"
        self._run(
            "etcd",
            f"--data-dir={self._folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=error",
        )

    def start_server(self) -> None:
        """Only the API server: etcd goes on while it is away."""
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            f"--secure-port={self._port}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--cert-dir={self._folder / 'certificates'}",
            f"--token-auth-file={self._folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={self._folder / 'accounts.key'}",
            f"--service-account-key-file={self._folder / 'accounts.key'}",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--disable-admission-plugins=ServiceAccount",
        )
        self._wait_ready()

    def stop_server(self) -> None:
        _end(self._processes.pop())

    def stop(self) -> None:
        while self._processes:
            _end(self._processes.pop())

    def kubeconfig(self, namespace: str, token: str = "", name: str = "config") -> Path:
        """A kubeconfig of the administrator, or of the account of a token."""
        path = self._folder / name
        named = {"cluster": "tests", "user": "tests", "namespace": namespace}
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "tests",
                    "contexts": [{"name": "tests", "context": named}],
                    "clusters": [
                        {
                            "name": "tests",
                            "cluster": {
                                "server": self.url,
                                "certificate-authority": str(self._certificate),
                            },
                        }
                    ],
                    "users": [{"name": "tests", "user": {"token": token or self._token}}],
                }
            )
        )
        return path

    @property
    def _certificate(self) -> Path:
        return self._folder / "certificates" / "apiserver.crt"

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        kind: str = "application/json",
    ) -> tuple[int, Any]:
        """Status and body of one request of the administrator."""
        context = ssl.create_default_context(cafile=str(self._certificate))
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": kind},
        )
        try:
            with urllib.request.urlopen(request, context=context, timeout=10) as answer:
                return answer.status, _parsed(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _parsed(error.read())

    def define(self, definition: dict[str, Any]) -> None:
        """Make a definition, and wait until its objects are served."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        status, answer = self.request("POST", path, definition)
        if status != 201:
            raise RuntimeError(f"the definition was refused: {answer}")
        spec = definition["spec"]
        served = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        limit = time.monotonic() + START_SECONDS_MAX
        while self.request("GET", served)[0] != 200:
            if time.monotonic() > limit:
                raise RuntimeError(f"{served} is not served")
            time.sleep(0.05)

    def _run(self, *command: str) -> None:
        log = (self._folder / f"{command[0]}.log").open("ab")
        with log:
            self._processes.append(
                subprocess.Popen([self._program, *command], stdout=log, stderr=log)
            )

    def _wait_ready(self) -> None:
        limit = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < limit:
            if any(process.poll() is not None for process in self._processes):
                break
            try:
                if self._certificate.exists() and self._answers():
                    return
            except (OSError, ValueError):
                pass
            time.sleep(0.1)
        tail = (self._folder / "kube-apiserver.log").read_text()[-3000:]
        raise RuntimeError(f"the API server did not start: {tail}")

    def _answers(self) -> bool:
        return self.request("GET", "/readyz")[0] == 200


def _parsed(body: bytes) -> Any:
    """What is said in JSON; a path that nobody serves is told of in plain text."""
    try:
        return json.loads(body)
    except ValueError:
        return {"message": body.decode()}


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
