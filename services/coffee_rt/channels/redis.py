"""Channels over Redis pub/sub (classic PUBLISH: to any node of a Cluster, it reaches all of them).

Each subscription has its own connection and its own reader task. redis-py's hidden reconnect is turned
off (retries 0): a connection that comes back silently would hide that messages were missed, so here every
new connection leaves a None in the mailbox. A pub/sub connection may be idle for hours, hence no socket
time-out on reading; instead a PING goes out after `PING_SECONDS` of silence and must be answered. A new
connection looks its server up anew: a Sentinel's master, or in a Cluster any node that can be reached.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from coffee_rt.channels.mailbox import BYTES_MAX, MESSAGES_MAX, Mailbox
from coffee_rt.channels.metrics import failed_publications, reconnects
from coffee_rt.errors import Retryable
from coffee_rt.redis_nodes.nodes import RedisNodes, has_moved
from coffee_rt.runtime.settings import RedisSettings

CANCEL_SECONDS = 0.2
"""A reader that has not ended by then is cancelled again."""
CONNECT_SECONDS_MAX = 3.0
"""Longer than a SYN retransmission (1 s), shorter than anyone waits for a page."""
PUBLISH_SECONDS_MAX = 2.0
"""A publication later than this is of no use: the beacon has been sent meanwhile."""
PUBLISH_CONNECTIONS_MAX = 16
PING_SECONDS = 5.0
"""Silence after which a subscription's connection is tried. Shorter finds a dead peer sooner."""
ANSWER_SECONDS_MAX = 3.0
RECONNECT_SECONDS_BASE = 0.05
RECONNECT_SECONDS_MAX = 5.0

_FAILURES = (RedisError, OSError, TimeoutError, asyncio.TimeoutError)


class RedisChannels:
    """Publish and subscribe through the Redis of the settings (or of an address alone). Shared by all tasks
    of a process; owned by the wiring."""

    def __init__(
        self,
        settings: RedisSettings | str,
        *,
        namespace: str = "coffee-rt",
        messages_max: int = MESSAGES_MAX,
        bytes_max: int = BYTES_MAX,
        ping_seconds: float = PING_SECONDS,
        answer_seconds_max: float = ANSWER_SECONDS_MAX,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._prefix = f"{namespace}:live:"
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._ping_seconds = ping_seconds
        self._answer_seconds_max = answer_seconds_max
        self._uniform = uniform
        nodes = RedisNodes(settings)
        self._publisher = _client(nodes, PUBLISH_SECONDS_MAX, PUBLISH_CONNECTIONS_MAX)
        # Publishers beyond the pool wait here; the pool itself would refuse them.
        self._publishing = asyncio.Semaphore(PUBLISH_CONNECTIONS_MAX)
        self._subscriber = _client(nodes, None, None)
        self._mailboxes: set[Mailbox] = set()

    async def publish(self, topic: str, *bodies: bytes) -> None:
        """Raises Retryable when Redis did not confirm; a repetition does no harm to any receiver."""
        try:
            async with self._publishing, self._publisher.pipeline(transaction=False) as messages:
                for body in bodies:
                    messages.publish(self._prefix + topic, body)
                await messages.execute()
        except _FAILURES as error:
            failed_publications.inc()
            raise Retryable(f"Redis did not take a message on {topic}: {error}") from error

    @asynccontextmanager
    async def subscribe(self, *topics: str) -> AsyncIterator[Mailbox]:
        """Subscribed on entering. Where Redis is away then, it goes on trying, and the first item read
        is None once it is reached."""
        mailbox = Mailbox(self._messages_max, self._bytes_max)
        self._mailboxes.add(mailbox)
        opened = asyncio.Event()
        reader = asyncio.create_task(self._keep_reading(mailbox, topics, opened))
        try:
            await opened.wait()
            yield mailbox
        finally:
            self._mailboxes.discard(mailbox)
            mailbox.close()
            # More than once: a time-out below that ends in the same moment can swallow a cancellation.
            while not reader.done():
                reader.cancel()
                await asyncio.wait({reader}, timeout=CANCEL_SECONDS)

    async def close(self) -> None:
        for mailbox in self._mailboxes:
            mailbox.close()
        with suppress(*_FAILURES):
            await self._publisher.aclose()
        with suppress(*_FAILURES):
            await self._subscriber.aclose()

    async def _keep_reading(
        self, mailbox: Mailbox, topics: tuple[str, ...], opened: asyncio.Event
    ) -> None:
        """Read one connection after the other until cancelled. `opened` is set after the first attempt,
        whether it succeeded or not."""
        failures = 0
        while not mailbox.is_closed:
            pubsub = self._subscriber.pubsub()
            try:
                await asyncio.wait_for(self._open(pubsub, topics), CONNECT_SECONDS_MAX)
                if opened.is_set():
                    reconnects.inc()
                    mailbox.put_gap()
                opened.set()
                failures = 0
                await self._read(pubsub, mailbox)
            except _FAILURES:
                opened.set()
                failures += 1
            except Exception as error:  # noqa: BLE001 - the boundary of a connection
                # Whoever may publish may not silence a subscription, by whatever they have found to send.
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a subscription failed and is opened anew", "exception": error}
                )
                opened.set()
                failures += 1
            finally:
                with suppress(*_FAILURES):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
            limit = min(RECONNECT_SECONDS_MAX, RECONNECT_SECONDS_BASE * 2 ** min(failures, 10))
            await asyncio.sleep(self._uniform(0.0, limit))
        opened.set()

    async def _open(self, pubsub: PubSub, topics: tuple[str, ...]) -> None:
        """Subscribe and wait for every confirmation: only then nothing published later is missed."""
        exact = [self._prefix + topic for topic in topics if not topic.endswith("*")]
        patterns = [
            _escape(self._prefix + topic[:-1]) + "*" for topic in topics if topic[-1] == "*"
        ]
        if exact:
            await pubsub.subscribe(*exact)
        if patterns:
            await pubsub.psubscribe(*patterns)
        confirmations = 0
        while confirmations < len(topics):
            message = await pubsub.get_message(timeout=CONNECT_SECONDS_MAX)
            if message is not None and message["type"] in ("subscribe", "psubscribe"):
                confirmations += 1

    async def _read(self, pubsub: PubSub, mailbox: Mailbox) -> None:
        """Move messages into the mailbox until the connection fails or stays silent after a ping, or another server
        takes over."""
        connection = pubsub.connection
        is_pinged = False
        while not mailbox.is_closed:
            if has_moved(connection):
                raise ConnectionError("another server has taken over from the subscription's")
            wait = self._answer_seconds_max if is_pinged else self._ping_seconds
            message: dict[str, Any] | None = await pubsub.get_message(timeout=wait)
            if message is None:
                if is_pinged or connection is None or not connection.is_connected:
                    raise ConnectionError("the subscription's connection is silent")
                await pubsub.ping()
                is_pinged = True
                continue
            is_pinged = False
            if message["type"] in ("message", "pmessage"):
                # Whoever may publish may do so under any name: one that is no text is nobody's topic.
                topic = message["channel"].decode(errors="replace")
                mailbox.put(topic.removeprefix(self._prefix), message["data"])


def _client(
    nodes: RedisNodes, read_seconds_max: float | None, connections_max: int | None
) -> Redis:
    pool = nodes.pool(
        None,
        socket_timeout=read_seconds_max,
        socket_connect_timeout=CONNECT_SECONDS_MAX,
        socket_keepalive=True,
        # No retries: a hidden reconnect hides lost messages, a hidden resend doubles them.
        retry=Retry(NoBackoff(), 0),
        max_connections=connections_max,
    )
    return Redis.from_pool(pool)


def _escape(text: str) -> str:
    """The text as a glob pattern that matches only itself."""
    return "".join(f"\\{char}" if char in "*?[]^\\" else char for char in text)
