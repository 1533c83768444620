"""Executes flushes on Redis: one script call each, on one connection a shard.

What is resent and what is not: only NOSCRIPT and a Cluster's TRYAGAIN, MOVED and ASK say that nothing
happened, so only they are sent again, the last two elsewhere. A call whose answer never came may have been executed: its outcome is unknown, its connection
is dropped, and the caller repeats it with the same key.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from coffee_rt.domain.wire import WIRE_VERSION, batch_header
from coffee_rt.errors import BreakerOpen, NotExecuted, Overload, Rejected, Retryable
from coffee_rt.runtime.breaker import CircuitBreaker, backoff_seconds
from coffee_rt.runtime.clock import Clock
from coffee_rt.streams import metrics
from coffee_rt.streams.contract import EntryId
from coffee_rt.streams.flush import Flush, FlushReply, ProducerLimits, claim_of
from coffee_rt.streams.redis import Argument, Connector, KeptLink, Link, ReplyError, pack
from coffee_rt.streams.scripts import APPEND
from coffee_rt.streams.shards import LogKeys, check_shards

OOM_RETRY_SECONDS = 5.0
_KEEPS_LINK = frozenset({"OOM", "TRYAGAIN", "NOSCRIPT", "ASK"})
_NOT_EXECUTED = frozenset({"TRYAGAIN", "MOVED", "ASK"})
_REFUSED = frozenset({"LOADING", "READONLY"})
"""Nothing happened either, but sending it again at once would be answered the same: a server that reads its
file, or a replica."""
_ASKING = pack(b"ASKING")


class _Shard:
    __slots__ = ("asked", "failures", "link", "retry_at")

    def __init__(self, link: KeptLink) -> None:
        self.link = link
        self.asked: tuple[str, Link] | None = None
        """Where the slot is moving to (as the ASK reply says it), and the link to there."""
        self.failures = 0
        self.retry_at = 0.0


class RedisTarget:
    """A FlushTarget on Redis or Valkey. Owned by one producer; one flush at a time a shard.

    `breaker`, where given, guards connecting: while it is open nothing is tried.
    """

    def __init__(
        self,
        connector: Connector,
        keys: LogKeys,
        clock: Clock,
        limits: ProducerLimits | None = None,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self._connector = connector
        self._keys = keys
        self._clock = clock
        self._limits = limits or ProducerLimits()
        self._breaker = breaker
        self._shards = [
            _Shard(KeptLink(partial(self._reach, shard))) for shard in range(keys.shards)
        ]
        self._is_checked = False
        self._key_window_ms = str(self._limits.key_window_seconds * 1000).encode()
        self._client_id_window_ms = str(self._limits.client_id_window_seconds * 1000).encode()

    @property
    def shards(self) -> int:
        return self._keys.shards

    async def start(self) -> tuple[int, float, float]:
        await self._check_install()
        for shard in range(self.shards):
            await self._link(shard)
        link = await self._link(0)
        sent_at = self._clock.now()
        seconds, micros = await link.call("TIME", seconds_max=self._limits.reply_seconds_max)
        return int(seconds) * 1000 + int(micros) // 1000, sent_at, self._clock.now()

    def is_available(self, shard: int) -> bool:
        state = self._shards[shard]
        if state.link.is_open:
            return True
        if self._breaker is not None and self._breaker.retry_after_seconds > 0:
            return False
        return self._clock.monotonic() >= state.retry_at

    async def execute(self, flush: Flush) -> FlushReply:
        link = await self._link(flush.shard)
        arguments = self._arguments(flush)
        command = pack(b"EVALSHA", APPEND.sha, *arguments)
        give_up_at = self._clock.monotonic() + self._limits.resend_seconds_max
        attempt = 0
        is_asking = False
        while True:
            sent_at = self._clock.now()
            try:
                reply, replicas = await self._send(link, command, is_asking)
            except ReplyError as error:
                if error.code == "NOSCRIPT":
                    command = pack(b"EVAL", APPEND.text, *arguments)
                elif error.code in _NOT_EXECUTED and self._clock.monotonic() < give_up_at:
                    if error.code == "TRYAGAIN" or attempt:
                        await self._clock.sleep(backoff_seconds(attempt, 0.005, 0.2))
                    link = await self._redirect(flush.shard, link, error)
                    is_asking = error.code == "ASK"
                else:
                    raise self._refusal(link, error) from None
                attempt += 1
                continue
            entry_id = EntryId.parse(reply[0]) if reply[0] else None
            return FlushReply(
                entry_id, int(reply[1]), reply[2:], sent_at, self._clock.now(), replicas
            )

    async def close(self) -> None:
        for state in self._shards:
            state.link.close()
            if state.asked is not None:
                state.asked[1].close()

    async def _redirect(self, shard: int, link: Link, error: ReplyError) -> Link:
        """The link to send a call to that this one did not execute. Raises NotExecuted."""
        state = self._shards[shard]
        if error.code == "MOVED":
            link.close(error.code)
        if error.code != "ASK":
            return await self._link(shard)
        # Once only: until the slot has moved as a whole, the one it comes from is asked first each time.
        place = str(error)
        if state.asked is None or state.asked[0] != place or state.asked[1].is_closed:
            if state.asked is not None:
                state.asked[1].close()
            state.asked = place, await self._connector.open_asked(link, error, "append")
        return state.asked[1]

    def _arguments(self, flush: Flush) -> list[Argument]:
        """Number of keys, keys and arguments of the script; see append.lua."""
        shard = flush.shard
        keys: list[Argument] = [self._keys.streams[shard], self._keys.counters[shard]]
        key_prefix, id_prefix = self._keys.keys[shard], self._keys.client_ids[shard]
        keyed: list[Argument] = []
        for append in flush.keyed:
            kinds = b""
            if append.key_hash is not None:
                keys.append(key_prefix + append.key_hash.hex().encode())
                kinds = b"k"
            if append.is_client_id:
                keys.append(id_prefix + append.order_id.hex().encode())
                kinds += b"o"
            keyed += (append.record, append.order_id + claim_of(append), kinds)
        # Alone, the joined records are the entry's data as they are.
        head = b"" if keyed else batch_header(len(flush.unkeyed))
        return [
            len(keys),
            *keys,
            WIRE_VERSION,
            flush.batch_id,
            flush.highest,
            self._key_window_ms,
            self._client_id_window_ms,
            flush.trace,
            len(flush.unkeyed),
            b"".join([head, *flush.unkeyed]),
            *keyed,
        ]

    async def _send(self, link: Link, command: bytes, is_asking: bool) -> tuple[list[Any], int]:
        """The script's reply, and how many replicas have what it wrote."""
        limits = self._limits
        if is_asking:
            link.send(_ASKING)
        answer = link.send(command)
        if not limits.replicas_min:
            reply: list[Any] = await link.wait(answer, limits.reply_seconds_max)
            return reply, 0
        # WAIT counts what this very connection wrote; sent at once, it costs no round trip of its own.
        wait_ms = int(limits.replicas_wait_seconds_max * 1000)
        wait = ["WAITAOF", 1] if limits.is_disk_awaited else ["WAIT"]
        waited = link.send(pack(*wait, limits.replicas_min, wait_ms))
        seconds_max = limits.reply_seconds_max + limits.replicas_wait_seconds_max
        failure: Retryable | None = None
        try:
            reply = await link.wait(answer, seconds_max)
        except Retryable as error:
            failure = error
        try:
            replicas = await link.wait(waited, seconds_max)
        except Retryable as error:
            # The script was executed before WAIT, whatever that is answered: not the code of a refusal.
            failure = failure or Retryable(f"the replicas were not asked: {error}")
        if failure is not None:
            raise failure
        is_synced = True
        if limits.is_disk_awaited:
            is_synced, replicas = bool(replicas[0]), replicas[1]
        if replicas < limits.replicas_min or not is_synced:
            metrics.REPLICAS_MISSED.inc()
            if self._connector.fails_over:
                # Perhaps it was cut off with us, and its replicas have another master by now: it would never say
                # so. Looked up again before the next flush; there is one at a time, so nothing else is lost.
                link.close("too few replicas")
            where = "on disk" if limits.is_disk_awaited else "in memory"
            raise Retryable(f"only {replicas} of {limits.replicas_min} replicas have it {where}")
        return reply, int(replicas)

    def _refusal(self, link: Link, error: ReplyError) -> Exception:
        """What an error reply means for the caller."""
        if error.code not in _KEEPS_LINK:
            # A replica, a server that loads or refuses writes: look the server up again next time.
            link.close(error.code)
        if error.code == "OOM":
            return Overload("log-full", "the order log is full", OOM_RETRY_SECONDS)
        if error.code in _NOT_EXECUTED or error.code in _REFUSED:
            return NotExecuted(str(error))
        return Retryable(str(error))

    async def _check_install(self) -> None:
        limits = self._limits
        await ensure_install(
            self._connector,
            self._keys,
            limits.reply_seconds_max,
            is_disk_awaited=bool(limits.replicas_min and limits.is_disk_awaited),
        )
        self._is_checked = True

    async def _link(self, shard: int) -> Link:
        """One flush at a time: nothing is under way on a link that is replaced."""
        return await self._shards[shard].link.get()

    async def _reach(self, shard: int) -> Link:
        """A new link, unless the last attempt failed a moment ago. Raises NotExecuted."""
        state = self._shards[shard]
        if self._clock.monotonic() < state.retry_at:
            raise NotExecuted("the log is not reachable; tried a moment ago")
        try:
            if self._breaker is None:
                link = await self._connect(shard)
            else:
                async with self._breaker:
                    link = await self._connect(shard)
        except BreakerOpen as error:
            state.retry_at = self._clock.monotonic() + error.retry_after_seconds
            raise
        except NotExecuted:
            pause = backoff_seconds(state.failures, 0.1, self._limits.reconnect_seconds_max)
            # Never less than a twentieth: full jitter may say 0, and a flush a millisecond would follow.
            state.retry_at = self._clock.monotonic() + max(pause, 0.05 * (1 + random.random()))
            state.failures += 1
            raise
        state.failures = 0
        return link

    async def _connect(self, shard: int) -> Link:
        """Never to a log of another number of shards: no worker reads the streams this one would write to.
        The log may have been away when `start` was to check that."""
        if not self._is_checked:
            try:
                await self._check_install()
            except Rejected as error:
                raise NotExecuted(error.detail) from None
            except Retryable as error:
                raise NotExecuted(str(error)) from None
        return await self._connector.open(self._keys.streams[shard], "append")


async def ensure_install(
    connector: Connector, keys: LogKeys, seconds_max: float, *, is_disk_awaited: bool = False
) -> None:
    """Check the servers, and store the number of shards at the first use.

    Raises Rejected where another number is stored, or where a server may evict: it would drop orders
    and keys that were answered, without a word. Also where disks are to be awaited and a server can't.
    """
    link = await connector.open(keys.install, "keeper")
    try:
        # Read first: a process must also start while Redis is full, and HSETNX is refused then.
        stored = await link.call("HGET", keys.install, "shards", seconds_max=seconds_max)
        if stored is None:
            await link.call("HSETNX", keys.install, "shards", keys.shards, seconds_max=seconds_max)
            stored = await link.call("HGET", keys.install, "shards", seconds_max=seconds_max)
    finally:
        link.close()
    check_shards(int(stored), keys.shards)
    for stream in await connector.one_a_server(keys.streams):
        link = await connector.open(stream, "keeper")
        try:
            check_eviction(await link.call("INFO", "memory", seconds_max=seconds_max))
            if is_disk_awaited:
                await _check_disk(link, seconds_max)
        finally:
            link.close()


async def _check_disk(link: Link, seconds_max: float) -> None:
    """Raises Rejected where WAITAOF would only ever fail. The server is asked, not its version: Redis 7.0 has
    no such command, and others may have named it otherwise."""
    [known] = await link.call("COMMAND", "INFO", "WAITAOF", seconds_max=seconds_max)
    if not known:
        raise Rejected(
            "no-waitaof",
            "Redis has no WAITAOF, so nobody can wait for its replicas' disks: "
            "set COFFEE_RT_ORDER_API_REPLICAS_LEVEL=memory, or take Redis 7.2 or Valkey",
            "/replicas-level",
        )
    info = await link.call("INFO", "persistence", seconds_max=seconds_max)
    if b"aof_enabled:0" in info:
        raise Rejected(
            "no-append-only-file",
            "Redis has no append-only file, so an order is never on its disk: set appendonly yes",
            "/replicas-level",
        )


def check_eviction(info: bytes) -> None:
    """Raises Rejected unless INFO memory says noeviction. A server that does not say passes."""
    policy = next(
        (line[17:] for line in info.split(b"\r\n") if line.startswith(b"maxmemory_policy:")), None
    )
    if policy not in (None, b"noeviction"):
        detail = (
            f"Redis may evict ({policy.decode()}), and would lose accepted orders: "
            "set maxmemory-policy noeviction"
        )
        raise Rejected("redis-evicts", detail, "/maxmemory-policy")
