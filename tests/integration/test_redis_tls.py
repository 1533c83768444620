"""TLS to the log, for everything that speaks to it, on both event loops; and who is refused."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvloop

from coffee_rt.channels.redis import RedisChannels
from coffee_rt.errors import NotExecuted
from coffee_rt.redis_nodes.counts import SharedCounts
from coffee_rt.runtime.settings import RedisSettings
from coffee_rt.streams.contract import STORE_GROUP
from coffee_rt.streams.redis import RedisConnector
from coffee_rt.streams.redis_log import RedisLog
from tests.log_servers import PASSWORD, ValkeyCluster, running
from tests.streams_bed import SHARDS, an_append
from tests.tls_front import Papers, make_papers, tls_front

pytestmark = pytest.mark.integration

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return make_papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture
def tls_url(valkey_url: str, papers: Papers) -> Iterator[str]:
    url = urlsplit(valkey_url)
    assert url.port is not None
    with tls_front(url.port, papers) as port:
        yield f"rediss://:{url.password}@127.0.0.1:{port}/0"


async def use_everything(settings: RedisSettings, namespace: str) -> None:
    """An order through the log, a message through the channels, a count through the limiter."""
    log = RedisLog(settings, namespace, SHARDS)
    keeper, producer = log.keeper(), log.producer()
    await producer.start()
    await keeper.ensure_group(STORE_GROUP)
    # Larger than a TLS record, so that replies and commands come in pieces.
    note = "n" * 60_000
    orders = [an_append(producer, shard, note=note) for shard in range(SHARDS) for _ in range(8)]
    appended = await asyncio.gather(
        *(producer.append(number // 8, order) for number, order in enumerate(orders))
    )
    assert [each.order_id for each in appended] == [order.order_id for order in orders]
    reader = log.reader(STORE_GROUP, "a")
    for shard in range(SHARDS):
        entries = await reader.read(shard, 100, 0.1)
        assert sum(entry.records for entry in entries) == 8
        assert await reader.acknowledge(shard, entries) == len(entries)
    channels = RedisChannels(settings, namespace=namespace)
    async with channels.subscribe("beacon") as subscription:
        await channels.publish("beacon", b"x")
        assert await asyncio.wait_for(anext(aiter(subscription)), 10) == ("beacon", b"x")
    counts = SharedCounts(settings, namespace)
    assert [await counts.incr("k", 60, 2), await counts.incr("k", 60)] == [2, 3]
    await counts.close()
    await channels.close()
    await reader.leave()
    await producer.close()
    await keeper.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_everything_speaks_tls_with_an_authority_of_ones_own(
    tls_url: str, papers: Papers, redis_namespace: str, loop: str
) -> None:
    settings = RedisSettings(url=tls_url, ca_file=papers.ca)
    run_on(LOOPS[loop], settings, redis_namespace)


def test_a_cluster_behind_tls(tmp_path: Path, papers: Papers) -> None:
    cluster = ValkeyCluster(tmp_path, primaries=1)
    with tls_front(cluster.nodes[0].port, papers) as port:
        # What the node says of itself is where its clients come in.
        cluster.nodes[0].further["cluster-announce-port"] = str(port)
        with running(cluster):
            url = f"rediss+cluster://:{PASSWORD}@127.0.0.1:{port}"
            run_on(LOOPS["uvloop"], RedisSettings(url=url, ca_file=papers.ca), "n")


def run_on(
    loop: Callable[[], asyncio.AbstractEventLoop], settings: RedisSettings, namespace: str
) -> None:
    """In a thread, because this one may have a loop."""

    def run() -> None:
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(use_everything(settings, namespace))

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()


async def test_who_cannot_prove_who_it_is_is_refused(
    valkey_url: str, tls_url: str, papers: Papers, tmp_path: Path
) -> None:
    with pytest.raises(NotExecuted, match=r"(?i)certificate.verify.failed"):
        await RedisConnector(RedisSettings(url=tls_url)).open(b"k", "test")
    elsewhere = make_papers(tmp_path / "elsewhere", "10.0.0.1")
    with tls_front(urlsplit(valkey_url).port or 0, elsewhere) as port:
        settings = RedisSettings(url=f"rediss://127.0.0.1:{port}/0", ca_file=elsewhere.ca)
        with pytest.raises(NotExecuted, match=r"(?i)certificate is not valid for|mismatch"):
            await RedisConnector(settings).open(b"k", "test")


async def test_a_server_that_wants_to_know_us_is_shown_our_certificate(
    valkey_url: str, papers: Papers
) -> None:
    url = urlsplit(valkey_url)
    papers.server.verify_mode = ssl.CERT_REQUIRED
    try:
        with tls_front(url.port or 0, papers) as port:
            address = f"rediss://:{url.password}@127.0.0.1:{port}/0"
            with pytest.raises(NotExecuted):
                await RedisConnector(RedisSettings(url=address, ca_file=papers.ca)).open(b"k", "t")
            settings = RedisSettings(
                url=address,
                ca_file=papers.ca,
                certificate_file=papers.client,
                key_file=papers.client_key,
            )
            link = await RedisConnector(settings).open(b"k", "test")
            assert await link.call("ECHO", "x", seconds_max=5) == b"x"
            link.close()
    finally:
        papers.server.verify_mode = ssl.CERT_NONE
