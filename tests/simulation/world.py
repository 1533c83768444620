"""One run's platform: servers, processes that die and are started again, and what is known of the truth."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

from coffee_rt.channels.contract import Channels
from coffee_rt.domain.wire import decode_batch
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.logs import Log
from coffee_rt.store.memory import MemoryKeeper as MemoryStoreKeeper
from coffee_rt.store.memory import MemoryOrderReader
from coffee_rt.store.memory_database import MemoryDatabase
from coffee_rt.store.memory_view_reads import MemoryViewReader
from coffee_rt.store.memory_views import (
    MemoryViewCatalogue,
    MemoryViewFolder,
    MemoryViewRepairer,
)
from coffee_rt.streams.contract import STORE_GROUP, EntryId
from coffee_rt.streams.flush import Flush
from tests.builders import NOW_MS
from tests.memory_cluster import MemoryCluster
from tests.simulation.fussy import Fussiness, FussyWriter
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.network import Network, Server
from tests.simulation.plan import Plan
from tests.simulation.remote import (
    ProcessClock,
    Remote,
    RemoteChannels,
    SimBus,
    SimLog,
)
from tests.simulation.watching import TraceLog, WatchedIntake, WatchedKeeper

SHARDS = 2
EPOCH_SECONDS = NOW_MS / 1000


Main = Callable[["World", Process], Coroutine[Any, Any, None]]


@dataclass(slots=True)
class Part:
    """A process by its name; `process` is its newest incarnation. `core` is what others call into."""

    name: str
    main: Main
    process: Process | None = None
    core: Any = None
    drain: Callable[[], None] | None = None
    traps: list[Any] = field(default_factory=list)

    @property
    def is_up(self) -> bool:
        return self.process is not None and not self.process.is_dead and self.core is not None


class World:
    """Made for one run, thrown away after it."""

    def __init__(self, plan: Plan, seed: int, *, is_traced: bool) -> None:
        self.plan = plan
        self.is_traced = is_traced
        self.lines: list[str] = []
        self.fingerprint = 0
        self.failures: list[str] = []
        self.imbalances: list[str] = []
        self.loop = VirtualLoop(random.Random(f"schedule {seed}"))
        self.chance = random.Random(f"chance {seed}")
        self.network = Network(self.loop, random.Random(f"network {seed}"), plan.weather)
        self.network.on_fault = self._on_fault
        self.redis = Server(self.loop, "redis")
        self.postgresql = Server(self.loop, "postgresql")
        self.kubernetes = Server(self.loop, "kubernetes")
        self.clock = ProcessClock(self.loop, self.loop.world, EPOCH_SECONDS)
        self.log = SimLog(self.loop, self.clock, SHARDS)
        self.database = MemoryDatabase()
        self.bus = SimBus(self.loop, random.Random(f"bus {seed}"))
        self.bus.trouble = plan.bus_trouble
        self.folder = MemoryViewFolder(self.database, self.clock)
        self.fussiness = Fussiness(is_poisoned=plan.is_poisoned)
        self.writer = FussyWriter(self.database, self.fussiness)
        self.cluster = MemoryCluster()
        self.parts: dict[str, Part] = {}
        self.is_healed = False
        self.definitions = list(plan.views[0])
        """The views that are wanted."""
        self.lost_ids: set[bytes] = set()
        """Orders of entries that a failover of the log took back, or of an intake that a promotion did."""
        self.lost_batches: dict[bytes, tuple[int, int]] = {}
        """Those entries: batch id -> (shard, records)."""
        self.happened: Counter[str] = Counter()
        """What befell whom, by kind."""
        self.log_keeper = WatchedKeeper(self)
        self.intake = WatchedIntake(self)
        self._unnoticed: dict[int, int] = {}
        """Shard -> its counter before a failover, until somebody appends who knows."""
        self.uncounted: set[int] = set()
        """Shards of which a failover took entries that nobody remembered, or what told of an earlier loss: their
        accounts need not balance."""

    # What happened.

    def note(self, text: str) -> None:
        """A line of the trace; every line counts for the fingerprint."""
        now = self.loop.now
        self.fingerprint = zlib.crc32(
            b"%d %d" % (self.loop.steps, int(now * 1e6)), self.fingerprint
        )
        self.fingerprint = zlib.crc32(text.encode(), self.fingerprint)
        if self.is_traced:
            self.lines.append(f"{now:8.4f}  {text}")

    def _on_fault(self, who: str, point: str, fate: str) -> None:
        self.happened[f"call {fate}"] += 1
        self.note(f"{who}: {point} {fate}")

    def fail(self, text: str) -> None:
        self.note(f"FAILURE {text}")
        self.failures.append(text)

    def count(self) -> Counter[str]:
        """What befell the platform, and what its mechanisms did about it."""
        database, letters = self.database, self.database.dead_letters
        found = Counter(
            {
                "order stored": len(database.orders),
                "dead letter": len(database.dead_letters),
                "entry absorbed by the ledger": sum(
                    row.redeliveries for row in database.ledger.values()
                ),
                "ledger row compacted": sum(sums["entries"] for sums in database.sums.values()),
                "order under a second id": len(database.aliases),
                "entry parked": sum(each.detail.startswith("fails") for each in letters),
                "view exchanged": sum(
                    not view.state.internal.endswith("_1") for view in database.views.values()
                ),
            }
        )
        found.update(f"letter {each.outcome}" for each in letters if each.outcome)
        return found + self.happened

    # Processes.

    def add(self, name: str, main: Main, **options: Any) -> Part:
        part = self.parts[name] = Part(name, main, **options)
        self.start(part)
        return part

    def start(self, part: Part) -> None:
        if part.process is not None and not part.process.is_dead:
            return
        process = part.process = Process(self.loop, part.name)
        process.clock_error_seconds = self.plan.clock_errors.get(part.name, 0.0)
        part.core = part.drain = None
        self.note(f"{part.name} starts")
        task = process.start(part.main(self, process), part.name)

        def on_end(_: Any) -> None:
            if process.is_dead:
                return
            error = None if task.cancelled() else task.exception()
            if error is not None:
                self.fail(f"{part.name} crashed: {error!r}")
            self._end(part, process)

        task.add_done_callback(on_end, context=process.context)
        self._arm(part, process)

    def _end(self, part: Part, process: Process) -> None:
        """It ended by itself (drained, or crashed)."""
        self.note(f"{part.name} ends")
        process.kill()
        self.loop.call_later(0.2, self.start, part, context=self.loop.world.context)

    def _arm(self, part: Part, process: Process) -> None:
        if not part.traps or self.is_healed:
            return
        trap = part.traps.pop(0)

        def spring(caught: Process) -> None:
            getattr(self, f"_{trap.kind}")(part, caught, trap.seconds)

        process.trap = (process.steps + trap.step, spring)

    def _kill(self, part: Part, process: Process, seconds: float) -> None:
        self.happened[f"kill of {part.name.partition('-')[0]}"] += 1
        self.note(f"{part.name} is killed at its step {process.steps}")
        process.kill()
        self.loop.call_later(seconds, self.start, part, context=self.loop.world.context)

    def _freeze(self, part: Part, process: Process, seconds: float) -> None:
        self.happened["freeze"] += 1
        self.note(f"{part.name} freezes for {seconds:.2f} s at its step {process.steps}")
        process.freeze()
        self.loop.call_later(seconds, self._thaw, part, process, context=self.loop.world.context)

    def _thaw(self, part: Part, process: Process) -> None:
        self.note(f"{part.name} goes on")
        process.thaw()
        self._arm(part, process)

    def _drain(self, part: Part, process: Process, seconds: float) -> None:
        if part.drain is None:
            self._kill(part, process, seconds)
            return
        self.happened["drain"] += 1
        self.note(f"{part.name} is asked to end at its step {process.steps}")
        process.run(self.loop.call_soon, part.drain)

    def heal(self) -> None:
        """Nothing fails any more, and everybody is there."""
        self.note("everything heals")
        self.is_healed = True
        weather = self.network.weather
        weather.lost = weather.unanswered = weather.late = weather.slow = 0.0
        self.network.cut.clear()
        self.network.refused.clear()
        self.log.memory_bytes_max = 0
        self.fussiness.is_poisoned = self.plan.is_poison_lasting
        self.bus.trouble = 0.0
        for server in (self.redis, self.postgresql):
            server.is_away = server.is_refusing = False
            server.process.thaw()
        for part in self.parts.values():
            if part.process is not None:
                part.process.trap = None
                part.process.thaw()
            self.start(part)

    # What processes are made of.

    def clock_of(self, process: Process) -> ProcessClock:
        return ProcessClock(self.loop, process, EPOCH_SECONDS)

    def log_of(self, process: Process) -> Log:
        return cast(Log, TraceLog(self, process.name))

    def channels_of(self) -> Channels:
        return cast(Channels, RemoteChannels(self.network, self.redis, self.bus))

    def breaker_of(self, process: Process, name: str) -> CircuitBreaker:
        return CircuitBreaker(name, failures=5, open_seconds=0.5, clock=self.clock_of(process))

    def remote_log_keeper(self) -> Any:
        return Remote(self.network, self.redis, self.log_keeper)

    def _in_postgresql(self, inner: Any) -> Any:
        return Remote(self.network, self.postgresql, inner)

    def remote_store_keeper(self) -> Any:
        return self._in_postgresql(MemoryStoreKeeper(self.database))

    def remote_intake(self) -> Any:
        return self._in_postgresql(self.intake)

    def remote_catalogue(self) -> Any:
        return self._in_postgresql(MemoryViewCatalogue(self.database, self.clock))

    def remote_folder(self) -> Any:
        return self._in_postgresql(self.folder)

    def remote_repairer(self) -> Any:
        return self._in_postgresql(MemoryViewRepairer(self.database, self.clock))

    def remote_view_reader(self) -> Any:
        return self._in_postgresql(MemoryViewReader(self.database))

    def remote_order_reader(self) -> Any:
        return self._in_postgresql(MemoryOrderReader(self.database))

    # The stores.

    def on_trimmed(self, shard: int, gone: dict[EntryId, dict[bytes, bytes]]) -> None:
        """Nothing goes that is not stored and acknowledged."""
        self.note(f"shard {shard}: {len(gone)} entries are trimmed")
        self.happened["entry trimmed"] += len(gone)
        group = self.log.shards[shard].groups.get(STORE_GROUP)
        for entry_id, fields in gone.items():
            if b"d" in fields and fields[b"b"] not in self.database.ledger:
                self.fail(f"I6: {entry_id} of shard {shard} is trimmed and not stored")
            if group is None or entry_id in group.pending or entry_id > group.delivered:
                self.fail(f"I6: {entry_id} of shard {shard} is trimmed and not acknowledged")

    def promote(self, standby: MemoryDatabase) -> None:
        lacking = len(self.database.orders) - len(standby.orders)
        self.lost_ids |= self.intake.lacking(standby)
        self.database.promote(standby)
        self.note(f"PostgreSQL goes on without {lacking} orders")
        self.happened["promotion"] += 1
        self.happened["order lost by a promotion"] += lacking

    def fail_over(self, replica: list[Any], clock_skew_seconds: float) -> None:
        """The replica goes on: what it had not received never was."""
        for shard, (now, then) in enumerate(zip(self.log.shards, replica, strict=True)):
            for entry_id, fields in now.entries.items():
                if then.entries.get(entry_id) is not fields:
                    self._lose(shard, entry_id, fields)
            if now.counter > then.counter:
                self._unnoticed[shard] = max(now.counter, self._unnoticed.get(shard, 0))
        self.happened["failover"] += 1
        self.redis.run += 1
        self.log.clock_skew_seconds = clock_skew_seconds
        self.log.restore(replica)
        self.bus.interrupt()

    def on_append(self, flush: Flush) -> None:
        """The first append after a failover tells whether the loss is seen."""
        before = self._unnoticed.pop(flush.shard, None)
        if before is not None and flush.highest < before:
            self.uncounted.add(flush.shard)
        elif before is not None:
            self.happened["loss seen"] += 1

    @property
    def inexact_shards(self) -> set[int]:
        """Those where what a failover lost is not known to the log (yet)."""
        return self.uncounted | self._unnoticed.keys()

    def _lose(self, shard: int, entry_id: EntryId, fields: dict[bytes, bytes]) -> None:
        if b"g" in fields:
            # Should it be stored already, the next gap entry tells of the same records once more.
            self.uncounted.add(shard)
        if b"d" not in fields:
            return
        orders = decode_batch(1, fields[b"d"])
        self.happened["record lost by a failover"] += len(orders)
        self.lost_ids.update(order.order_id for order in orders)
        self.lost_batches[fields[b"b"]] = shard, len(orders)
        self.note(f"shard {shard} loses {entry_id} of {len(orders)} records")
