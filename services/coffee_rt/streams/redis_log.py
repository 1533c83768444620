"""The log on Redis, as a process's wiring opens it."""

from __future__ import annotations

from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock, SystemClock
from coffee_rt.runtime.settings import RedisSettings
from coffee_rt.streams.append import RedisTarget
from coffee_rt.streams.flush import ProducerLimits
from coffee_rt.streams.keeper import RedisKeeper
from coffee_rt.streams.producer import GroupProducer
from coffee_rt.streams.reader import RedisReader
from coffee_rt.streams.redis import RedisConnector
from coffee_rt.streams.shards import LogKeys


class RedisLog:
    """Makes producers, readers and keepers of one log; connects nowhere by itself."""

    def __init__(
        self,
        settings: RedisSettings,
        namespace: str,
        shards: int,
        clock: Clock | None = None,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.keys = LogKeys(namespace, shards)
        self.connector = RedisConnector(settings)
        self._clock = clock or SystemClock()
        # Where servers fail over, a breaker would leave the next one alone: a shard's own pauses do.
        self._breaker = None if self.connector.fails_over else breaker
        self._seconds_max = settings.command_seconds_max

    def producer(self, limits: ProducerLimits | None = None) -> GroupProducer:
        """A running OrderProducer (call in the event loop); `await producer.start()` checks the server."""
        limits = limits or ProducerLimits(reply_seconds_max=self._seconds_max)
        target = RedisTarget(self.connector, self.keys, self._clock, limits, self._breaker)
        return GroupProducer(target, self._clock, limits)

    def reader(self, group: str, consumer: str) -> RedisReader:
        return RedisReader(
            self.connector, self.keys, group, consumer, reply_seconds_max=self._seconds_max
        )

    def keeper(self) -> RedisKeeper:
        return RedisKeeper(self.connector, self.keys, reply_seconds_max=self._seconds_max)
