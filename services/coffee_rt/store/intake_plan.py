"""Which keyed records of a flush the intake takes, decided from who holds their keys. Pure; both stores use it.

As in the log's append script: the key goes before the client's id, and a new key over a known id with the same
body means that order too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from coffee_rt.store.intake_contract import IntakeWrite, KeyedRecord, KeyHolder, Known


@dataclass(slots=True)
class IntakePlan:
    """`claims`: keys to note -> the order they lead to. `records`: what the row will carry."""

    answers: list[Known | None] = field(default_factory=list)
    claims: dict[bytes, KeyHolder] = field(default_factory=dict)
    records: list[bytes] = field(default_factory=list)


def names_of(write: IntakeWrite) -> set[bytes]:
    """Everything the flush's keyed records are known under."""
    names = {each.key_hash for each in write.keyed if each.key_hash is not None}
    return names | {each.order_id for each in write.keyed if each.is_client_id}


def id_claim(tenant: int, body_hash: bytes) -> bytes:
    """What is noted under a client's id: ids are one name space, so the tenant is part of the body there."""
    if not tenant:
        return body_hash
    return blake2b(body_hash, digest_size=16, key=tenant.to_bytes(4, "big")).digest()


def plan_append(write: IntakeWrite, held: Mapping[bytes, KeyHolder]) -> IntakePlan:
    """The plan of a flush. `held`: by whom its names are held already."""
    plan = IntakePlan(records=list(write.plain))
    for each in write.keyed:
        plan.answers.append(_place(plan, write.batch_id, each, held))
    return plan


def _place(
    plan: IntakePlan, batch_id: bytes, each: KeyedRecord, held: Mapping[bytes, KeyHolder]
) -> Known | None:
    key, own_claim = each.key_hash, id_claim(each.tenant, each.body_hash)
    if key is not None and (holder := held.get(key) or plan.claims.get(key)):
        return Known(holder.order_id, holder.batch_id, holder.body_hash == each.body_hash)
    if each.is_client_id:
        holder = held.get(each.order_id) or plan.claims.get(each.order_id)
        if holder is not None:
            is_same = holder.body_hash == own_claim
            if key is not None and is_same:
                plan.claims[key] = holder._replace(body_hash=each.body_hash)
            return Known(holder.order_id, holder.batch_id, is_same)
        plan.claims[each.order_id] = KeyHolder(each.order_id, own_claim, batch_id)
    if key is not None:
        plan.claims[key] = KeyHolder(each.order_id, each.body_hash, batch_id)
    plan.records.append(each.record)
    return None
