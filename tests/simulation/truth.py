"""What is true at a moment of a run, for answers that say how far an order is."""

from __future__ import annotations

from collections.abc import Iterator

from coffee_rt.order_api.acks import Ack
from coffee_rt.streams.contract import Appended
from tests.simulation.world import World


def lies(world: World, appended: Appended, level: Ack) -> Iterator[str]:
    """What is not so though `level` says it. Of a database that may lose commits nothing can be said."""
    database, order_id = world.database, appended.order_id
    if level is Ack.LOGGED or world.plan.has("promotion"):
        return
    dead = {letter.order_id for letter in database.dead_letters}
    if order_id in dead:
        return
    stands_for = database.aliases.get(order_id, (0, order_id))[1]
    if stands_for not in database.orders and stands_for not in dead:
        if stands_for == order_id or not world.intake.is_waiting(stands_for):
            yield "it is not stored"
        # Known to be a repetition, of an order that waits in the intake: said a moment early.
        world.happened["told early"] += 1
        return
    if level is not Ack.VISIBLE:
        return
    xid = world.writer.xids.get(order_id)
    for internal, view in sorted(database.views.items()):
        is_waiting = any(stored.xid == xid for lane in view.lanes for stored in lane.deltas)
        if view.state.is_current and is_waiting:
            yield f"it is not folded into {internal}"
