"""The store through a real PgBouncer, where the machine has one: transactions pooled, no session kept.

That the store needs no named statements is tested without one in test_store_care.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from coffee_rt.errors import Retryable
from tests.builders import an_order
from tests.store_harness import WriteStore, a_write_store, an_entry

pytestmark = pytest.mark.integration
PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


@pytest.fixture
def pooler_url(database_url: str) -> Iterator[str]:
    """The test's database through a PgBouncer of three server connections."""
    target = urlsplit(database_url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="coffee-rt-pooler-") as folder:
        Path(folder).chmod(0o755)
        config = Path(folder) / "pgbouncer.ini"
        password = f" password={target.password}" if target.password else ""
        config.write_text(
            f"""[databases]
* = host={target.hostname} port={target.port} user={target.username}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
"""
        )
        user = "nobody" if os.geteuid() == 0 else None
        process = subprocess.Popen([str(PGBOUNCER), "-q", str(config)], user=user)
        yield urlunsplit(target._replace(netloc=f"{target.username}@127.0.0.1:{port}"))
        process.terminate()
        process.wait(10)


async def wait_until_answering(store: WriteStore) -> None:
    for _ in range(500):
        try:
            await store.keeper.ensure_shards(4)
        except Retryable:
            await asyncio.sleep(0.02)
        else:
            return
    pytest.fail("the pooler does not answer")


if PGBOUNCER:

    async def test_many_tasks_write_and_read_through_a_transaction_pooler(pooler_url: str) -> None:
        async with a_write_store(pooler_url, statement_cache_size=0, pool_size_max=8) as store:
            await wait_until_answering(store)

            async def work() -> None:
                for _ in range(5):
                    order = an_order()
                    entry = an_entry(order, an_order())
                    await store.commit(entry)
                    assert await store.reader.find_order(0, order.order_id) is not None
                    again = store.writer.prepare([entry])
                    committed = await store.writer.commit(again, is_claimed=True)
                    assert committed.outcomes[0].seen_before

            await asyncio.gather(*(work() for _ in range(8)))
            assert (await store.keeper.ledger_sums(0, None))["stored"] == 80

    async def test_start_up_settings_through_a_pooler_are_refused_with_advice(
        pooler_url: str,
    ) -> None:
        async with a_write_store(pooler_url, statement_cache_size=0) as store:
            await wait_until_answering(store)
        async with a_write_store(pooler_url, statement_cache_size=9) as store:
            with pytest.raises(Retryable, match="STATEMENT_CACHE_SIZE=0"):
                await store.keeper.ensure_shards(4)
