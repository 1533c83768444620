"""The log on a real Valkey when things go wrong: lost answers, full memory, lost scripts, replicas."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from coffee_rt.embedded.server_process import LAPTOP, TEST, free_port
from coffee_rt.embedded.servers import EmbeddedValkey
from coffee_rt.errors import NotExecuted, Overload, Retryable
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.settings import RedisSettings
from coffee_rt.streams.contract import Outcome
from coffee_rt.streams.flush import ProducerLimits
from coffee_rt.streams.redis_log import RedisLog
from tests.log_servers import ValkeyNode
from tests.streams_bed import RedisBed, an_append

pytestmark = pytest.mark.integration

MEGABYTE = 1 << 20


class Proxy:
    """A TCP proxy in front of Redis that can keep commands from it, or answers from the client."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.is_answering = True
        """False: commands reach Redis, answers are thrown away."""
        self.instead: list[bytes] = []
        """Answers given without asking Redis, to the next appends."""
        self.instead_of_zero: list[bytes] = []
        """Answers given instead of the next ones that are 0, as WAIT's without a replica is."""

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        host = f"{self._url.username or ''}:{self._url.password}@127.0.0.1:{port}"
        return urlunsplit(self._url._replace(netloc=host))

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(self._url.hostname, self._url.port)
        self._writers += [writer, up_writer]
        for source, target, is_answer in ((reader, up_writer, False), (up_reader, writer, True)):
            task = asyncio.ensure_future(self._pump(source, target, writer, is_answer))
            self._tasks.add(task)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        client: asyncio.StreamWriter,
        is_answer: bool,
    ) -> None:
        try:
            while data := await source.read(1 << 16):
                if not is_answer and b"EVALSHA" in data and self.instead:
                    client.write(self.instead.pop(0))
                elif is_answer and data == b":0\r\n" and self.instead_of_zero:
                    client.write(self.instead_of_zero.pop(0))
                elif not is_answer or self.is_answering:
                    target.write(data)
        except OSError:
            return
        finally:
            target.close()


@pytest.fixture
async def proxy(valkey_url: str) -> AsyncIterator[Proxy]:
    made = Proxy(valkey_url)
    yield made
    await made.stop()


@pytest.fixture
async def bed(valkey_url: str, redis_namespace: str) -> AsyncIterator[RedisBed]:
    """The same log past the proxy."""
    made = RedisBed(valkey_url, redis_namespace)
    yield made
    await made.close()


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A server that this test alone may ruin."""
    server = EmbeddedValkey(tmp_path / "own", durability=TEST)
    server.start()
    yield server
    server.stop()


async def test_a_lost_answer_is_unknown_and_the_key_finds_the_order(
    proxy: Proxy, bed: RedisBed, redis_namespace: str
) -> None:
    log = RedisLog(RedisSettings(url=await proxy.start()), redis_namespace, 4)
    producer = log.producer(ProducerLimits(reply_seconds_max=0.3))
    await producer.append(0, an_append(producer))
    append = an_append(producer, key=b"K", body=b"b")
    proxy.is_answering = False
    with pytest.raises(Retryable) as caught:
        await producer.append(0, append)
    assert not isinstance(caught.value, NotExecuted)
    proxy.is_answering = True
    again = await producer.append(0, an_append(producer, key=b"K", body=b"b"))
    assert (again.outcome, again.order_id) == (Outcome.DUPLICATE, append.order_id)
    # The next answer belongs to the next command: nothing is off by one.
    fresh = an_append(producer)
    assert (await producer.append(0, fresh)).order_id == fresh.order_id
    await producer.close()


async def test_a_connection_cut_under_way_is_unknown_and_is_made_again(
    proxy: Proxy, bed: RedisBed, redis_namespace: str
) -> None:
    log = RedisLog(RedisSettings(url=await proxy.start()), redis_namespace, 4)
    producer = log.producer()
    await producer.start()
    proxy.is_answering = False
    waiting = asyncio.ensure_future(producer.append(0, an_append(producer)))
    await asyncio.sleep(0.05)
    proxy.cut()
    proxy.is_answering = True
    with pytest.raises(Retryable) as caught:
        await waiting
    assert not isinstance(caught.value, NotExecuted)
    assert (await producer.append(0, an_append(producer))).outcome is Outcome.NEW
    await producer.close()


async def test_try_again_is_sent_again_and_nothing_else_is(
    proxy: Proxy, bed: RedisBed, redis_namespace: str
) -> None:
    log = RedisLog(RedisSettings(url=await proxy.start()), redis_namespace, 4)
    producer = log.producer(ProducerLimits(resend_seconds_max=1.0))
    await producer.start()
    proxy.instead = [b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n"] * 3
    assert (await producer.append(0, an_append(producer))).outcome is Outcome.NEW
    assert proxy.instead == []
    proxy.instead = [b"-READONLY You can't write against a read only replica.\r\n"]
    with pytest.raises(Retryable, match="READONLY"):
        await producer.append(0, an_append(producer))
    assert (await bed.keeper().horizon(0)).counter == 1
    assert (await producer.append(0, an_append(producer))).outcome is Outcome.NEW
    await producer.close()


@pytest.mark.parametrize("reply", [b"-LOADING reading\r\n", b"-READONLY a replica\r\n"])
async def test_a_server_that_takes_no_orders_now_executed_nothing(
    proxy: Proxy, bed: RedisBed, redis_namespace: str, reply: bytes
) -> None:
    log = RedisLog(RedisSettings(url=await proxy.start()), redis_namespace, 4)
    producer = log.producer(ProducerLimits())
    await producer.start()
    proxy.instead = [reply]
    with pytest.raises(NotExecuted):
        await producer.append(0, an_append(producer))
    await producer.close()


async def test_a_server_that_reads_its_file_takes_nothing(tmp_path: Path) -> None:
    settings = {"key-load-delay": "300"}
    server = ValkeyNode(tmp_path / "slow", settings, port=free_port(), durability=LAPTOP)
    server.start()
    bed = RedisBed(server.url, "n")
    producer = bed.producer()
    try:
        await producer.start()
        with server.client as client, client.pipeline(transaction=False) as pipe:
            for number in range(8_000):
                pipe.set(f"other:{number}", number)
            pipe.execute()
        os.kill(server.process.pid, signal.SIGKILL)
        server.stop()
        server.launch()
        told: list[str] = []
        is_taken = False
        async with asyncio.timeout(60):
            while not is_taken:
                try:
                    is_taken = bool(await producer.append(0, an_append(producer)))
                except NotExecuted as error:
                    told.append(str(error))
                    await asyncio.sleep(0.02)
                except Retryable:
                    await asyncio.sleep(0.02)
        assert any("LOADING" in each for each in told), told
        assert (await bed.keeper().horizon(0)).counter == 1
    finally:
        await producer.close()
        server.stop()


async def test_a_refusal_of_the_wait_for_replicas_says_nothing_of_the_order(
    proxy: Proxy, bed: RedisBed, redis_namespace: str
) -> None:
    """The order is in the log; "nothing happened" would have it taken a second time."""
    log = RedisLog(RedisSettings(url=await proxy.start()), redis_namespace, 4)
    producer = log.producer(ProducerLimits(replicas_min=1, replicas_wait_seconds_max=0.1))
    await producer.start()
    proxy.instead_of_zero = [b"-LOADING reading\r\n"]
    with pytest.raises(Retryable) as caught:
        await producer.append(0, an_append(producer))
    assert not isinstance(caught.value, NotExecuted)
    assert (await bed.keeper().horizon(0)).counter == 1
    await producer.close()


async def test_try_again_for_too_long_is_not_executed(
    proxy: Proxy, bed: RedisBed, redis_namespace: str
) -> None:
    log = RedisLog(RedisSettings(url=await proxy.start()), redis_namespace, 4)
    producer = log.producer(ProducerLimits(resend_seconds_max=0.05))
    await producer.start()
    proxy.instead = [b"-TRYAGAIN later\r\n"] * 10_000
    with pytest.raises(NotExecuted):
        await producer.append(0, an_append(producer))
    proxy.instead = []
    await producer.close()


async def test_scripts_lost_by_the_server_are_sent_again(own_valkey: EmbeddedValkey) -> None:
    bed = RedisBed(own_valkey.url, "n")
    producer = bed.producer()
    await producer.append(0, an_append(producer))
    await bed.command("SCRIPT", "FLUSH")
    assert (await producer.append(0, an_append(producer))).outcome is Outcome.NEW
    await bed.command("SCRIPT", "FLUSH")
    assert (await bed.keeper().horizon(0)).counter == 2
    await bed.close()


async def test_an_append_that_fails_burns_no_key(own_valkey: EmbeddedValkey) -> None:
    bed = RedisBed(own_valkey.url, "n")
    producer = bed.producer()
    await bed.command("SET", bed.log.keys.streams[0], "no stream")
    with pytest.raises(Retryable):
        await producer.append(0, an_append(producer, key=b"K", body=b"b"))
    await bed.command("DEL", bed.log.keys.streams[0])
    again = await producer.append(0, an_append(producer, key=b"K", body=b"b"))
    assert again.outcome is Outcome.NEW
    await bed.close()


async def test_full_memory_is_overload_and_duplicates_are_still_answered(
    own_valkey: EmbeddedValkey,
) -> None:
    bed = RedisBed(own_valkey.url, "n")
    producer = bed.producer()
    first = await producer.append(0, an_append(producer, key=b"K", body=b"b"))
    await bed.command("CONFIG", "SET", "maxmemory", MEGABYTE)
    with pytest.raises(Overload) as caught:
        await producer.append(0, an_append(producer, key=b"L", body=b"b"))
    assert caught.value.status == 503
    again = await producer.append(0, an_append(producer, key=b"K", body=b"b"))
    assert (again.outcome, again.position) == (Outcome.DUPLICATE, first.position)
    await bed.command("CONFIG", "SET", "maxmemory", 0)
    fresh = await producer.append(0, an_append(producer, key=b"L", body=b"b"))
    assert fresh.outcome is Outcome.NEW
    await bed.close()


async def test_full_memory_is_drained_by_a_worker_that_starts_into_it(
    own_valkey: EmbeddedValkey,
) -> None:
    bed = RedisBed(own_valkey.url, "n")
    producer = bed.producer()
    await bed.keeper().ensure_group("workers")
    await producer.append(0, an_append(producer))
    await bed.command("CONFIG", "SET", "maxmemory", MEGABYTE)
    keeper, reader = bed.keeper(), bed.reader(consumer="new")
    await keeper.start()
    await keeper.ensure_group("workers")
    entries = await reader.read(0, 10, 0.1)
    assert len(entries) == await reader.acknowledge(0, entries) == 1
    assert await keeper.trim(0, 0.0) == 1
    await bed.command("CONFIG", "SET", "maxmemory", 0)
    await bed.close()


async def test_nothing_is_written_to_a_log_of_another_number_of_shards(
    valkey_url: str, redis_namespace: str
) -> None:
    bed = RedisBed(valkey_url, redis_namespace)
    await bed.keeper().start()
    # This one was not greeted: the log was away when it started.
    other = bed.producer(shards=3)
    with pytest.raises(NotExecuted, match=f"installed with {bed.log.keys.shards} shards"):
        await other.append(0, an_append(other))
    assert await bed.command("KEYS", f"{redis_namespace}:orders:*") == []
    await bed.close()


async def test_duplicates_write_too_so_that_wait_covers_them(
    own_valkey: EmbeddedValkey, tmp_path: Path
) -> None:
    replica = EmbeddedValkey(tmp_path / "replica", durability=TEST)
    replica.start()
    try:
        bed, behind = RedisBed(own_valkey.url, "n"), RedisBed(replica.url, "n")
        source = urlsplit(own_valkey.url)
        await behind.command("CONFIG", "SET", "masterauth", source.password or "")
        # Else the server waits five seconds for other replicas to copy to.
        await bed.command("CONFIG", "SET", "repl-diskless-sync-delay", 0)
        await behind.command("REPLICAOF", source.hostname or "", source.port or 0)
        await _wait_replica(bed)
        limits = ProducerLimits(replicas_min=1, replicas_wait_seconds_max=1.0)
        producer = bed.producer(limits)
        append = an_append(producer, key=b"K", body=b"b")
        assert (await producer.append(0, append)).outcome is Outcome.NEW
        assert (await producer.append(0, append)).outcome is Outcome.DUPLICATE
        assert replica.pid is not None
        os.kill(replica.pid, signal.SIGSTOP)
        try:
            # The order is on the replica already, but nobody can know that: WAIT must not say so.
            with pytest.raises(Retryable, match="replicas"):
                await producer.append(0, append)
        finally:
            os.kill(replica.pid, signal.SIGCONT)
        assert (await producer.append(0, append)).outcome is Outcome.DUPLICATE
        await bed.close()
        behind.disconnect()
    finally:
        replica.stop()


async def _wait_replica(bed: RedisBed) -> None:
    for _ in range(200):
        if b"state=online" in await bed.command("INFO", "replication"):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the replica did not come online")


async def test_a_server_away_is_not_executed_and_is_found_when_it_is_back(
    own_valkey: EmbeddedValkey,
) -> None:
    bed = RedisBed(own_valkey.url, "n")
    producer = bed.producer(ProducerLimits(reconnect_seconds_max=0.1))
    await producer.append(0, an_append(producer))
    own_valkey.stop()
    failures = 0
    while not failures or producer.is_available:
        try:
            await producer.append(producer.choose_shard(), an_append(producer))
        except NotExecuted:
            failures += 1
        except Retryable:
            pass
    own_valkey.start()
    for _ in range(200):
        try:
            appended = await producer.append(0, an_append(producer))
            break
        except NotExecuted:
            await asyncio.sleep(0.02)
    assert appended.outcome is Outcome.NEW
    await bed.close()


async def test_an_open_breaker_tries_nothing() -> None:
    breaker = CircuitBreaker("log-under-test", failures=1, open_seconds=60)
    log = RedisLog(RedisSettings(url="redis://127.0.0.1:1/0"), "n", 4, breaker=breaker)
    producer = log.producer()
    for _ in range(3):
        with pytest.raises(NotExecuted):
            await producer.append(0, an_append(producer))
    assert breaker.is_open
    with pytest.raises(NotExecuted):
        await producer.append(1, an_append(producer))
    assert not producer.is_available
    await producer.close()
