"""What must hold when everything has healed and come to rest: the invariants, each by its number.

The truth is what clients were told and what the log took; the stores are compared with it, the views with
a recomputation from the orders, the browsers with the views.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from coffee_rt.domain import wire
from coffee_rt.domain.orders import Order
from coffee_rt.domain.views import compute_deltas_simply
from coffee_rt.domain.wire import INTAKE_SHARD
from coffee_rt.store.batches import KEY_CONFLICT
from coffee_rt.store.contract import DeadLetter, accounted_records
from coffee_rt.store.memory import MemoryKeeper, MemoryOrderReader
from coffee_rt.store.memory_database import MemoryView
from coffee_rt.streams.contract import STORE_GROUP
from tests.simulation.browsers import Browser
from tests.simulation.clients import Clients, Told
from tests.simulation.fussy import BAD_DRINK, POISON_DRINK
from tests.simulation.redrives import is_redriving, parked_letters
from tests.simulation.remote import run_now
from tests.simulation.world import World


def unrest(world: World, clients: Clients) -> Iterator[str]:
    """What still goes on."""
    if not clients.are_done:
        yield "clients wait for answers"
    for number, shard in enumerate(world.log.shards):
        group = shard.groups.get(STORE_GROUP)
        if shard.timelines.get(STORE_GROUP, (0, ""))[1] != world.database.timeline:
            yield f"shard {number} was not told PostgreSQL's timeline"
        if shard.ids and (group is None or group.delivered < shard.ids[-1]):
            yield f"shard {number} has entries nobody was given"
        if group is not None and group.pending:
            yield f"shard {number} has {len(group.pending)} pending entries"
    if world.database.intake:
        yield f"{len(world.database.intake)} batches wait in the intake"
    if world.plan.is_poisoned and (parked_letters(world) or is_redriving(world)):
        yield "letters wait to be sent again"
    names = Counter(view.state.definition.name for view in world.database.views.values())
    for internal, view in sorted(world.database.views.items()):
        if view.state.backfilled_to is not None or not view.state.is_live:
            yield f"view {internal} is not filled"
        if names[view.state.definition.name] > 1:
            yield f"view {internal} has a replacement"
        if any(lane.deltas for lane in view.lanes):
            yield f"view {internal} has unfolded deltas"
    wanted = {definition.name: definition for definition in world.definitions}
    current = {v.state.definition.name: v.state.definition for v in world.database.views.values()}
    if current != wanted:
        yield "the views are not the wanted ones"


def held_up(world: World, clients: Clients) -> Iterator[str]:
    """Batches without poison that are not stored though everything else has healed."""
    if not clients.are_done:
        yield "clients wait for answers"
    for number, shard in enumerate(world.log.shards):
        group = shard.groups.get(STORE_GROUP)
        for entry_id in shard.ids:
            is_done = group is not None and entry_id <= group.delivered
            if is_done and group is not None and entry_id not in group.pending:
                continue
            if not _has_poison(shard.entries[entry_id].get(b"d", b"")):
                yield f"{entry_id} of shard {number} waits, and has no poison"
    for batch in world.database.intake.values():
        if not _has_poison(batch.data):
            yield "a batch without poison waits in the intake"


def _has_poison(data: bytes) -> bool:
    return bool(data) and any(o.drink == POISON_DRINK for o in wire.decode_batch(1, data))


def behind(world: World, browsers: list[Browser]) -> Iterator[str]:
    """I7: browsers that do not show the database's rows at its versions."""
    for number, browser in enumerate(browsers):
        view = _view(world, browser.view)
        state = browser.state
        if state.is_reset or state.epoch != view.state.epoch:
            yield f"I7: browser {number} is at epoch {state.epoch!r}, not {view.state.epoch!r}"
        elif state.versions != [lane.version for lane in view.lanes]:
            yield f"I7: browser {number} is at versions {state.versions}"
        elif state.values() != {
            (*group[2:], group[1]): row.measures for group, row in view.rows.items()
        }:
            yield f"I7: browser {number} shows other numbers at the right versions"


def violations(world: World, clients: Clients) -> Iterator[str]:
    """What is wrong at rest."""
    yield from _orders(world, clients)
    yield from _dead_letters(world)
    yield from _conservation(world)
    yield from _views(world)
    yield from _money(world, clients)


def _orders(world: World, clients: Clients) -> Iterator[str]:
    stored: dict[bytes, list[Order]] = defaultdict(list)
    for each in world.database.orders.values():
        stored[each.order.body_hash].append(each.order)
    for letter in _waiting_letters(world):
        order = wire.decode_record(letter.raw)
        stored[order.body_hash].append(order)
    for told in clients.all_told:
        yield from _order(world, told, stored.pop(wire.hash_body(told.wish.body), []), stored)
    for orders in stored.values():
        yield f"I3: {len(orders)} orders are stored that nobody was told of: {orders[0]}"


def _waiting_letters(world: World) -> list[DeadLetter]:
    """Readable ones. Those that were sent again are accounted for elsewhere."""
    return [
        letter
        for letter in world.database.dead_letters
        if letter.order_id is not None and letter.redriven_at_us is None
    ]


def _resolve(world: World, order_id: bytes) -> bytes | None:
    """The order, or else the dead letter, that somebody finds who was told this id."""
    reader = MemoryOrderReader(world.database)
    found = run_now(reader.find_order(0, order_id))
    if found is not None:
        return bytes(found.order.order_id)
    letter = run_now(reader.find_dead_letter(0, order_id))
    return None if letter is None else letter.order_id


def _order(
    world: World, told: Told, found: list[Order], others: dict[bytes, list[Order]]
) -> Iterator[str]:
    wish, number = told.wish, told.wish.number
    ids = {order.order_id for order in found}
    kept = ids - world.lost_ids
    if world.plan.has_intake:
        # Dead in both places, or dead after its key had led to another body: told so, and not stored twice.
        kept &= world.database.orders.keys()
    is_dead_twice = world.plan.has_intake and wish.drink == BAD_DRINK
    if len(found) > len(ids) and not ids & world.lost_ids and not is_dead_twice:
        yield f"I2: an order of wish {number} is stored twice under one id"
    if len(kept) > 1:
        yield f"I2: wish {number} is stored as {len(kept)} orders"
    ends = {each: _resolve(world, each) for each in sorted(told.ids - world.lost_ids)}
    for each, end in ends.items():
        if end not in ids:
            yield f"I1: wish {number} was told {each.hex()}, which is stored nowhere"
    if len(set(ends.values())) > 1 and wish.drink != BAD_DRINK:
        yield f"I4: wish {number} was told {len(ends)} ids, of more than one order"
    if len(ends) > 1 and not world.plan.has_intake:
        yield f"I4: wish {number} was told {len(ends)} ids"
    if found and not told.ids and not told.is_unknown:
        yield f"I3: wish {number} was refused, and is stored"
    for order in found:
        said = (order.store, order.drink, order.price_minor, order.quantity)
        if said != (wish.store, wish.drink, wish.price_minor, wish.quantity):
            yield f"I1: wish {number} is stored as another order"
    if told.twin_sent:
        yield from _twin(world, told, found, others)


def _twin(
    world: World, told: Told, found: list[Order], others: dict[bytes, list[Order]]
) -> Iterator[str]:
    """The other body under the same key."""
    wish = told.wish
    twin = b"%d %s %s %d" % (
        wish.number,
        wish.store.encode(),
        wish.drink.encode(),
        wish.price_minor + 1,
    )
    taken = others.pop(wire.hash_body(twin), [])
    if (told.ids | told.twins_taken) & world.lost_ids:
        # Where a failover took the key with it, the second body may be the first one that counts.
        return
    both = {order.order_id for order in (*found, *taken)}
    if (taken or told.twins_taken) and not (both | told.ids) & world.intake.taken:
        yield f"I3: wish {wish.number}: another body under its key was taken"
    if len(both & world.database.orders.keys()) > 1:
        yield f"I3: wish {wish.number}: two bodies under its key are stored"
    for each in told.twins_taken:
        if _resolve(world, each) not in {order.order_id for order in taken}:
            yield f"I1: another body of wish {wish.number} was told {each.hex()}, stored nowhere"


def _dead_letters(world: World) -> Iterator[str]:
    places = Counter((each.batch_id, each.index) for each in world.database.dead_letters)
    for (batch_id, index), count in places.items():
        if count > 1:
            yield f"I2: record {index} of {batch_id.hex()} is {count} dead letters"
    for letter in _waiting_letters(world):
        drink = wire.decode_record(letter.raw).drink
        if drink != BAD_DRINK and letter.code != KEY_CONFLICT:
            yield f"I1: a good order is a dead letter: {letter.code} {letter.detail}"


def _conservation(world: World) -> Iterator[str]:
    keeper = MemoryKeeper(world.database)
    stored = 0
    known = {each.batch_id for each in world.database.orders.values()}
    known |= world.database.ledger.keys()
    for number, shard in enumerate(world.log.shards):
        sums = run_now(keeper.ledger_sums(number, None))
        stored += sums["stored"]
        imbalance = shard.counter - accounted_records(sums)
        if number in world.inexact_shards:
            continue
        if imbalance:
            yield f"conservation: shard {number} is off by {imbalance}: {sums}, of {shard.counter}"
        lost = sum(
            records
            for batch_id, (taken, records) in world.lost_batches.items()
            if taken == number and batch_id not in known
        )
        if sums["lost"] != lost:
            yield f"conservation: shard {number} counts {sums['lost']} lost records of {lost}"
    stored += run_now(keeper.ledger_sums(INTAKE_SHARD, None))["stored"]
    intake = run_now(world.intake.state())
    if intake.imbalance:
        yield f"conservation: the intake is off by {intake.imbalance}: {intake}"
    shards = [*range(len(world.log.shards)), INTAKE_SHARD]
    dead = sum(run_now(keeper.ledger_sums(shard, None))["dead"] for shard in shards)
    waiting = sum(letter.redriven_at_us is None for letter in world.database.dead_letters)
    if dead != waiting:
        yield f"conservation: the ledger says {dead} dead, and {waiting} letters wait"
    if stored != len(world.database.orders):
        yield f"conservation: the ledger says {stored} stored, of {len(world.database.orders)}"
    if not world.plan.has("failover", "promotion"):
        yield from (f"conservation: {text}" for text in world.imbalances)


def _views(world: World) -> Iterator[str]:
    """I5: every view equals a recomputation, to the cent."""
    orders = [each.order for each in world.database.orders.values()]
    for internal, view in sorted(world.database.views.items()):
        rows = {group: row.measures for group, row in view.rows.items() if any(row.measures)}
        definition = view.state.definition
        expected = {g: d.measures for g, d in compute_deltas_simply(definition, orders).items()}
        for group in sorted({*rows, *expected}):
            if rows.get(group) != expected.get(group):
                yield f"I5: {internal} {group} is {rows.get(group)}, not {expected.get(group)}"


def _money(world: World, clients: Clients) -> Iterator[str]:
    """I13: what was accepted, what is stored, what the view says."""
    stored = sum(each.order.revenue_minor for each in world.database.orders.values())
    rows = _view(world, "sales").rows.values()
    shown = sum(row.measures[2] for row in rows)
    if shown != stored:
        yield f"I13: {stored} is stored and {shown} is shown"
    dead = {wire.decode_record(letter.raw).body_hash for letter in _waiting_letters(world)}
    accepted = sum(
        told.wish.price_minor * told.wish.quantity
        for told in clients.all_told
        if told.ids - world.lost_ids and wire.hash_body(told.wish.body) not in dead
    )
    if stored < accepted:
        yield f"I13: {accepted} was accepted and {stored} is stored"


def _view(world: World, name: str) -> MemoryView:
    return next(
        view
        for view in world.database.views.values()
        if view.state.is_current and view.state.definition.name == name
    )
