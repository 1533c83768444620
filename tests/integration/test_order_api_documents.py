"""What docs/http-api.md shows is what the process does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from tests.integration.order_api_process import BATCH, ORDERS, running_order_api

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "http-api.md"
SOURCES = Path(__file__).parents[2] / "services" / "coffee_rt"


def blocks(kind: str) -> list[bytes]:
    found = re.findall(rf"```json {kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found
    return [text.encode() for text in found]


async def test_the_examples_of_the_page_are_answered_as_it_says(
    valkey_url: str, redis_namespace: str
) -> None:
    async with running_order_api(valkey_url, redis_namespace) as api:
        for body in blocks("order"):
            reply = await api.post(ORDERS, body)
            assert reply.status == 202
            assert set(reply.json) == {"order_id", "position", "ack", "replicas", "duplicate"}
        for body in blocks("batch"):
            records = msgspec.json.decode(body)
            reply = await api.post(BATCH, body)
            assert len(reply.json["results"]) == len(records)
            assert (reply.json["accepted"], reply.json["rejected"]) == (1, 1)
            [error] = reply.json["results"][1]["problem"]["errors"]
            assert (error["place"], error["code"]) == ("/1/ordered_at", "bad-time")


def test_every_code_the_order_routes_give_is_on_the_page() -> None:
    page = PAGE.read_text()
    codes: set[str] = set()
    for path in [*(SOURCES / "order_api").glob("*.py"), *(SOURCES / "domain").glob("*.py")]:
        if path.name in {"views.py", "view_documents.py", "wire.py"}:
            continue
        text = path.read_text()
        codes.update(re.findall(r'(?:Rejected|Overload)\(\s*"([a-z-]+)"', text))
    internal = {"internal-error", "bad-tenant"}
    assert {code for code in codes - internal if f"`{code}`" not in page} == set()
