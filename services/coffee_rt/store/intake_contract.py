"""The intake: where orders wait in the database while the log is away.

order_api appends record batches, each durable when the call returns; workers take them out in the transaction
that stores them (OrderWriter.commit, of entries of the shard INTAKE_SHARD). Keys are checked against all
orders stored and all that wait, but not against what is still in the log: the worker settles that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class KeyedRecord:
    """A record under an Idempotency-Key, an order id of the client's, or both."""

    order_id: bytes
    record: bytes
    body_hash: bytes
    key_hash: bytes | None
    is_client_id: bool
    tenant: int = 0


@dataclass(frozen=True, slots=True)
class IntakeWrite:
    """One flush: becomes one row, or none when all of it was known."""

    batch_id: bytes
    version: int
    plain: Sequence[bytes]
    keyed: Sequence[KeyedRecord]
    trace: str = ""


class KeyHolder(NamedTuple):
    """The order a key led to first."""

    order_id: bytes
    body_hash: bytes
    batch_id: bytes


class Known(NamedTuple):
    """Why a record was not taken: its key, or its client's id, led to this order before."""

    order_id: bytes
    batch_id: bytes
    is_same: bool
    """With the same body: a repetition. Else a conflict."""


@dataclass(frozen=True, slots=True)
class WaitingBatch:
    """A row of the intake."""

    batch_id: bytes
    version: int
    records: int
    data: bytes
    trace: str
    waited_seconds: float


@dataclass(frozen=True, slots=True)
class IntakeState:
    """The intake at one moment."""

    batches: int
    records: int
    size_bytes: int
    oldest_seconds: float
    accepted: int
    """Records ever taken."""
    accounted: int
    """Records the ledger accounts for. With `records` it is `accepted`, or some were lost."""
    keys_since: float | None
    """Unix seconds since when workers note the keys of what they store; None: they don't."""

    @property
    def imbalance(self) -> int:
        """Records that were taken and are neither stored nor waiting; always 0 while nobody interferes."""
        return self.accepted - self.accounted - self.records


class Intake(Protocol):
    """Shared by the tasks of a process; any number of processes may append and drain."""

    async def state(self) -> IntakeState: ...

    async def append(self, write: IntakeWrite) -> list[Known | None]:
        """One transaction. For each keyed record None, or why it was not taken.

        Raises NotExecuted when it certainly did not happen, Retryable when the outcome is unknown.
        """

    async def waiting(self, batches_max: int, bytes_max: int) -> list[WaitingBatch]:
        """The oldest batches that this release can read; at least one where there is any."""

    async def find(self, tenant: int, order_id: bytes) -> tuple[bytes, bytes] | None:
        """(batch id, record) of an order that waits; follows aliases. An empty record: in a batch of a newer
        release."""

    async def still_waiting(self, batch_ids: Sequence[bytes]) -> set[bytes]:
        """Those of these batches, once appended, that no worker has stored yet."""

    async def note_keys(self, is_kept: bool) -> None:
        """Say whether the workers of this installation note keys, for `keys_since`."""

    async def sweep(self, keep_seconds: float, pause_seconds: float = 0.0) -> int:
        """Forget keys older than that, add up what was accepted; how many keys. Does nothing where any process
        began to within `pause_seconds`."""
