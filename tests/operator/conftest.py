"""Tests of the operator against a real API server: those of this folder need the program that
`k8s-tests/cluster/cluster build` makes, and are there only where it was made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from tests.api_server import ApiServer, program

ROOT = Path(__file__).parents[2]
_numbers = itertools.count(1)

collect_ignore_glob = [] if program() else ["test_*.py"]


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A running API server that knows our definitions."""
    found = program()
    assert found is not None
    server = ApiServer(found, tmp_path_factory.mktemp("api-server"))
    try:
        server.start()
        for path in sorted((ROOT / "helm" / "coffee-rt" / "crds").glob("*.yaml")):
            for definition in yaml.safe_load_all(path.read_text()):
                server.define(definition)
        yield server
    finally:
        server.stop()


@pytest.fixture
def shop(api: ApiServer) -> str:
    """A namespace of this test's own."""
    name = f"shop-{next(_numbers)}"
    status, answer = api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    assert status == 201, answer
    return name


@pytest.fixture
def pod_port() -> Iterator[int]:
    """Where a pod answers /metrics with 350 sessions."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'coffee_rt_fanout_sessions_count{kind="websocket"} 350.0\n'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()
