"""A namespace with a database, an operator and an aggregator of its own, and orders that flow."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coffee_rt.domain.orders import Order
from coffee_rt.store.contract import DeadRecord
from coffee_rt.store.orders import PostgresOrderWriter
from coffee_rt.store.pool import Pool
from coffee_rt.store.view_catalogue import PostgresViewCatalogue
from coffee_rt.store.view_contract import ViewQuery, ViewState
from coffee_rt.store.view_reads import PostgresViewReader
from tests.api_server import ApiServer
from tests.builders import NOW_MS
from tests.store_harness import an_entry
from tests.view_writing import expected_rows, live_view, some_orders, stored_rows

GROUP = "/apis/coffee-rt.dev/v1alpha1/namespaces"
KINDS = {"metricviews": "MetricView", "redrives": "Redrive", "replays": "Replay"}
NOW_S = NOW_MS // 1000


@dataclass
class ViewShop:
    """One namespace with its database, an operator and an aggregator."""

    api: ApiServer
    namespace: str
    database_url: str
    redis_url: str
    folder: Path
    pool: Pool
    stack: AsyncExitStack
    token: str = ""
    """Of the account the operator works as; the administrator's without."""
    orders: list[Order] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.writer = PostgresOrderWriter(self.pool)
        self.catalogue = PostgresViewCatalogue(self.pool)
        self.reader = PostgresViewReader(self.pool)

    async def start(self, process: str, **settings: str) -> asyncio.subprocess.Process:
        """Start a process of the product; killed at the end of the test at the latest."""
        environ = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(self.api.kubeconfig(self.namespace, self.token, name=self.namespace)),
            "COFFEE_RT_DATABASE_URL": self.database_url,
            "COFFEE_RT_REDIS_URL": self.redis_url,
            "COFFEE_RT_NAMESPACE": self.namespace,
            "COFFEE_RT_HTTP_PORT": "0",
        } | settings
        command = f"import sys; from coffee_rt.{process}.main import run; sys.exit(run())"
        with (self.folder / f"{process}.log").open("ab") as log:
            started = await asyncio.create_subprocess_exec(
                sys.executable, "-c", command, env=environ, stdout=log, stderr=log
            )
        self.stack.push_async_callback(end, started)
        return started

    async def start_operator(self) -> asyncio.subprocess.Process:
        return await self.start("operator", COFFEE_RT_OPERATOR_LEASE_SECONDS="3")

    def request(self, method: str, plural: str, name: str = "", body: Any = None) -> Any:
        path = f"{GROUP}/{self.namespace}/{plural}" + (f"/{name}" if name else "")
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        status, answer = self.api.request(method, path, body, kind=kind)
        return answer if status < 300 else {"code": status, **answer}

    def create(self, plural: str, name: str, spec: dict[str, Any]) -> None:
        body = {
            "apiVersion": "coffee-rt.dev/v1alpha1",
            "kind": KINDS[plural],
            "metadata": {"name": name},
            "spec": spec,
        }
        answer = self.request("POST", plural, body=body)
        assert "code" not in answer, answer

    def status(self, plural: str, name: str) -> dict[str, Any]:
        """Empty of an object that is gone."""
        found = self.request("GET", plural, name)
        return {} if "code" in found else dict(found.get("status") or {})

    async def until_phase(self, plural: str, name: str, phase: str) -> dict[str, Any]:
        async def has_phase() -> bool:
            return bool(self.status(plural, name).get("phase") == phase)

        await self.until(has_phase, f"{plural}/{name} is not {phase}")
        return self.status(plural, name)

    async def until(
        self, condition: Callable[[], Awaitable[bool]], complaint: str, seconds: float = 90
    ) -> None:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    if await condition():
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            logs = "".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))
            statuses = [self.request("GET", plural).get("items") for plural in KINDS]
            pytest.fail(f"{complaint}\n{json.dumps(statuses, indent=1)}\n{logs}")

    async def commit(self, orders: list[Order], dead: list[DeadRecord] | None = None) -> None:
        entry = an_entry(*orders, dead=dead or [])
        await self.writer.commit(self.writer.prepare([entry]))
        self.orders += orders

    async def flow(self) -> None:
        """Orders without end."""
        seed = 1000
        while True:
            seed += 1
            await self.commit(some_orders(5, seed=seed, hours=8))
            await asyncio.sleep(0.05)

    async def counted(self, view: str = "sales") -> int:
        """Orders that a reader of the view is shown."""
        total = 0
        for tenant in (0, 1):
            query = ViewQuery(view, tenant, 0, NOW_S + 86_400, group_by=(), is_total=True)
            answer = await self.reader.query(query)
            total += sum(row["orders"] for row in answer.rows)
        return total

    async def states(self) -> list[ViewState]:
        return await self.catalogue.views()

    async def is_right(self, view: str = "sales") -> bool:
        live = await live_view(self.pool, view)
        return await stored_rows(self.pool, live) == expected_rows(live.definition, self.orders)


async def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


def a_spec(**changes: Any) -> dict[str, Any]:
    measures = [
        {"name": "orders", "aggregate": "count"},
        {"name": "revenue", "aggregate": "sum", "field": "revenue"},
    ]
    spec = {"bucket": "hour", "dimensions": ["store", "drink"], "measures": measures}
    return {**spec, "retentionDays": 36_500, **changes}
