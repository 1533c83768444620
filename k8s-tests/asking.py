"""Questions to the Services from outside the cluster, through the API server: what a reader or a till would get."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from kube import Json, wait_until
from release import NAME, Release

ANSWER_SECONDS_MAX = 30.0


class Refused(AssertionError):
    """An answer that is no success; `status` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text[:1000]}")
        self.status = status


@dataclass
class Caller:
    """HTTP with the release's first API key. Use as a context: `kubectl proxy` runs meanwhile."""

    release: Release

    def __enter__(self) -> Self:
        kube = self.release.kube
        self._key = self.release.api_key
        self._proxy = subprocess.Popen(
            ["kubectl", f"--kubeconfig={kube.kubeconfig}", "proxy", "--port=0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            self._port = _port(self._proxy.stdout)
            # A pod that was there before the database reads the keys at its next turn.
            wait_until(self._is_known, "the readers know the API key", 60)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._proxy.terminate()
        self._proxy.communicate()

    def _is_known(self) -> bool:
        try:
            self.get("query-api", "/api/v1/views")
        except Refused as error:
            if error.status == 503:
                return False
            raise
        return True

    def get(self, component: str, path: str) -> Json:
        """Raises Refused."""
        return self._ask(component, path, None)

    def post_orders(self, orders: list[Json], ack: str = "visible") -> Json:
        """A batch, accepted whole; returns when all of it is stored, or in the views."""
        path = f"/api/v1/orders/batch?ack={ack}&wait_ms=20000"
        answer = self._ask("order-api", path, json.dumps(orders).encode())
        assert answer["accepted"] == len(orders), answer
        return answer

    def total(self, view: str, measure: str = "orders", last: str = "24h") -> int:
        """What a reader of the view is shown, over all its groups and buckets."""
        path = f"/api/v1/views/{view}?bucket=total&group_by=&last={last}"
        rows = self.get("query-api", path)["rows"]
        assert len(rows) <= 1, rows
        return int(rows[0][measure]) if rows else 0

    def _ask(self, component: str, path: str, body: bytes | None) -> Json:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/api/v1/namespaces/{self.release.kube.namespace}"
            f"/services/{NAME}-{component}:http/proxy{path}",
            data=body,
            headers={"X-API-Key": self._key, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS_MAX) as response:
                answer: Json = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(error.code, error.read().decode(errors="replace")) from None
        return answer


def _port(output: IO[str] | None) -> int:
    """Of the line `Starting to serve on 127.0.0.1:35821`."""
    assert output is not None
    line = output.readline()
    assert ":" in line, f"kubectl proxy: {line!r}"
    return int(line.rpartition(":")[2])


def an_order(store: str, number: int = 0, **changes: Any) -> Json:
    """An order that is always accepted."""
    drink = ("latte", "americano", "cappuccino", "tea")[number % 4]
    return {"store": store, "drink": drink, "price": "3.50", "quantity": 1 + number % 3, **changes}
