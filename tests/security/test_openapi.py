"""Requests made from each OpenAPI document, good and bad: every answer is one the document tells of.

Run against the real processes with a real key by schemathesis, from a fixed seed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from coffee_rt.domain.keys import MintedKey, mint_key
from coffee_rt.runtime.environment import environment
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.contract import ApiKey
from coffee_rt.store.keys import PostgresApiKeys
from tests.integration.order_api_process import running_order_api
from tests.integration.test_query_api import served as query_api_served
from tests.view_writing import a_pool

pytestmark = pytest.mark.integration

EXAMPLES = 12
"""Requests of each kind that are made for an operation."""


ROOT = str(Path(__file__).parents[2])
CONFIG = Path(__file__).with_name("schemathesis.toml")
"""Which checks are off where, and why."""


async def keyed(database_url: str, *scopes: str) -> MintedKey:
    key = mint_key()
    async with a_pool(database_url) as pool:
        await PostgresApiKeys(pool).add_api_key(
            ApiKey(key.key_id, 0, "documents", key.secret_hash, frozenset(scopes), 0, False)
        )
    return key


async def check(document: str, key: MintedKey, folder: Path) -> None:
    """Fails with schemathesis's own report."""
    running = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "schemathesis"),
        *(
            "--config-file",
            str(CONFIG),
            "run",
            document,
            "--header",
            f"Authorization: Bearer {key.text}",
        ),
        *("--seed", "8", "--generation-deterministic"),
        *("--max-examples", str(EXAMPLES), "--continue-on-failure", "--no-color"),
        *("--suppress-health-check", "all", "--warnings", "off", "--max-redirects", "0"),
        cwd=folder,
        env={**environment(), "PYTHONPATH": ROOT, "SCHEMATHESIS_HOOKS": "tests.security.ndjson"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    report, _ = await running.communicate()
    assert running.returncode == 0, report.decode()


@pytest.mark.timeout(300)
async def test_orders_are_answered_as_their_document_says(
    database_url: str, valkey_url: str, redis_namespace: str, tmp_path: Path
) -> None:
    key = await keyed(database_url, "ingest")
    async with running_order_api(
        valkey_url,
        redis_namespace,
        auth="required",
        database=DatabaseSettings(url=database_url),
        ack_wait_seconds_default=0.05,
        ack_wait_seconds_max=0.05,
    ) as api:
        address = f"http://127.0.0.1:{api.port}/api/v1/orders/openapi.json"
        await check(address, key, tmp_path)


@pytest.mark.timeout(300)
async def test_queries_are_answered_as_their_document_says(
    database_url: str, valkey_url: str, redis_namespace: str, tmp_path: Path
) -> None:
    key = await keyed(database_url, "read", "admin")
    async with query_api_served(
        database_url, valkey_url, redis_namespace, auth="required"
    ) as platform:
        await platform.store([platform.order(drink=drink) for drink in ("tea", "latte")])
        await check(f"{platform.address}/api/query/openapi.json", key, tmp_path)
