"""Orders posted while processes are killed: each stored once, each in every view once, to the cent."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from tests.acceptance.running import Platform

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

PRICE_MINOR = 315
TILLS = 8
ORDERS_A_TILL = 250
HEAL_SECONDS_MAX = 90


class Till:
    """Posts orders one after the other; what is not answered is sent again with the same key."""

    def __init__(self, address: str, store: str) -> None:
        self.address = address
        self.store = store
        self.order_ids: list[str] = []
        self.retries = 0
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        for _ in range(ORDERS_A_TILL):
            self.order_ids.append(self._place(uuid.uuid4().hex))

    def _place(self, key: str) -> str:
        body = {"store": self.store, "drink": "tea", "price": "3.15", "quantity": 1}
        request = Request(
            f"{self.address}/api/v1/orders",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Idempotency-Key": key},
        )
        while True:
            try:
                with urlopen(request, timeout=5) as answer:
                    return str(json.load(answer)["order_id"])
            except HTTPError as error:
                if error.code not in (429, 500, 502, 503, 504):
                    raise
            except (URLError, OSError, ValueError):
                pass
            self.retries += 1
            time.sleep(0.05)


def wait_until(condition: Callable[[], Any], seconds: float = HEAL_SECONDS_MAX) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the limit"
        time.sleep(0.1)


def view_totals(platform: Platform, store: str) -> dict[str, Any]:
    path = f"/api/v1/views/hourly?last=2h&store={store}&group_by=store&bucket=total"
    try:
        rows = platform.get(path)["rows"]
    except (URLError, OSError):
        return {}
    return dict(rows[0]) if rows else {}


def test_kills_under_load_lose_nothing_and_double_nothing(platform: Platform) -> None:
    store = f"killed-{uuid.uuid4().hex[:8]}"
    tills = [Till(platform.address, store) for _ in range(TILLS)]
    for till in tills:
        till.thread.start()
    for victim in ("worker", "order-api", "aggregator", "fanout", "worker", "query-api"):
        time.sleep(0.4)
        killed = platform.kill(victim)
        wait_until(lambda part=victim, was=killed: platform.pid_of(part) != was)  # type: ignore[misc]
    for till in tills:
        till.thread.join(HEAL_SECONDS_MAX)
        assert not till.thread.is_alive()
    order_ids = [order_id for till in tills for order_id in till.order_ids]
    assert len(set(order_ids)) == len(order_ids) == TILLS * ORDERS_A_TILL
    total = {"orders": len(order_ids), "revenue": f"{len(order_ids) * PRICE_MINOR / 100:.2f}"}
    wait_until(lambda: total.items() <= view_totals(platform, store).items())
    assert platform.get(f"/api/v1/orders/{order_ids[0]}")["state"] in ("logged", "stored")
    for view in ("hourly", "minutely"):
        audited = platform.command("audit", view)
        assert audited.returncode == 0, audited.stdout + audited.stderr


def test_a_third_view_is_filled_with_its_history_and_then_maintained(tmp_path: Path) -> None:
    views = tmp_path / "views"
    views.mkdir()
    first = Platform(tmp_path / "data", "--views", str(views))
    try:
        first.wait_ready()
        first.post("old", "4.00", quantity=2)
        wait_until(lambda: view_totals(first, "old").get("orders") == 1)
    finally:
        first.stop()
    (views / "dearest.yaml").write_text(
        "name: dearest\nbucket: day\ndimensions: [store]\n"
        "measures: {orders: count, dearest: {max: price}}\n"
    )
    second = Platform(tmp_path / "data", "--views", str(views))
    try:
        second.wait_ready()
        second.post("new", "7.50")
        path = "/api/v1/views/dearest?last=3d&group_by=store&bucket=total"

        def rows() -> dict[str, str]:
            try:
                return {row["store"]: row["dearest"] for row in second.get(path)["rows"]}
            except (HTTPError, URLError, OSError):
                return {}

        wait_until(lambda: rows() == {"old": "4.00", "new": "7.50"})
        listed = {view["name"]: view for view in second.get("/api/v1/views")["views"]}
        assert listed["dearest"]["bucket"] == "day"
    finally:
        second.stop()
