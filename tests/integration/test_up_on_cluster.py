"""The whole platform on a Valkey Cluster of one's own: every process, the doctor, and a primary that dies."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from coffee_rt.streams.shards import LogKeys
from tests.integration.test_embedded_up import (
    get,
    orders_in_view,
    post_order,
    run_to_end,
    wait_for,
)
from tests.integration.test_embedded_up import running as running_up
from tests.log_servers import ValkeyCluster, running, wait_until

pytestmark = pytest.mark.integration

ORDERS = 12


def test_orders_flow_from_post_to_view_and_go_on_when_a_primary_dies(
    tmp_path: Path, database_url: str
) -> None:
    cluster = ValkeyCluster(tmp_path / "cluster", replicas=1)
    data = tmp_path / "data"
    options = ("--redis-url", cluster.url, "--database-url", database_url)
    with running(cluster), running_up(data, *options) as up:
        first = [post_order(up.address)["order_id"] for _ in range(ORDERS)]
        wait_for(lambda: orders_in_view(up.address) == ORDERS, "all orders in the view")
        doctor = run_to_end("doctor", "--data-dir", str(data))
        # Every server is looked at; these are tests' own, without a file.
        for node in cluster.nodes:
            assert node.place in doctor.stdout, doctor.stdout
        assert doctor.returncode == 1
        stream = LogKeys("coffee-rt", 4).streams[0]
        victim = cluster.primary_of(stream)
        victim.kill()
        wait_until(lambda: cluster.primary_of(stream) is not victim, "another primary")
        second = [post_surely(up.address, f"order-{number}") for number in range(ORDERS)]
        wait_for(lambda: orders_in_view(up.address) == 2 * ORDERS, "the later ones too")
        for order_id in (first[0], second[0], second[-1]):
            assert get(f"{up.address}/api/v1/orders/{order_id}")["drink"] == "latte"
        assert get(f"{up.address}/readyz")["status"] == "ready"
        assert up.press_ctrl_c() == 0, up.text


def post_surely(address: str, key: str) -> str:
    """As a client does it: repeated with its key until it is answered."""
    body = json.dumps({"store": "uptown", "drink": "latte", "price": "4.50"}).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    answers: list[str] = []

    def is_answered() -> bool:
        request = urllib.request.Request(f"{address}/api/v1/orders", data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                answers.append(json.load(response)["order_id"])
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
        return bool(answers)

    wait_for(is_answered, "answered")
    return answers[0]
