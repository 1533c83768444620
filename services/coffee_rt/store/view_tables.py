"""What a commit must know of the views: which are live, and how their deltas become rows.

The catalogue is read under the shared side of `CATALOGUE_LOCK`; whoever changes it holds the exclusive
side, so a commit that sees generation G carries the deltas of exactly the views of G. Encoding is pure
and happens before the transaction; the names of a view's tables follow from its internal name alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from coffee_rt.domain.view_documents import parse_view
from coffee_rt.domain.views import (
    Aggregate,
    Bucket,
    Delta,
    Group,
    ViewDefinition,
    lane_of,
)
from coffee_rt.errors import Rejected
from coffee_rt.store import copy
from coffee_rt.store.contract import FEATURE_LEVEL

CATALOGUE_LOCK = 0x636F6666_00000001
"""Advisory key: shared by every commit, exclusive for a change of the set of views."""


@dataclass(frozen=True, slots=True)
class LiveView:
    """A view that commits must feed. While a changed definition is filled, two share one public name."""

    definition: ViewDefinition
    internal: str
    epoch: str
    feature_level: int
    is_current: bool = True
    """False for a replacement that readers don't see yet."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The set of views of one generation. `views` has replacements before the view they replace."""

    generation: int
    views: tuple[LiveView, ...]

    @property
    def lanes(self) -> dict[str, list[int]]:
        """All lanes of the views that readers see."""
        return {
            view.definition.name: list(range(view.definition.lanes))
            for view in self.views
            if view.is_current
        }

    @property
    def views_too_new(self) -> tuple[LiveView, ...]:
        """Views this release can't maintain: a worker that sees one must stop before COPY."""
        return tuple(view for view in self.views if view.feature_level > FEATURE_LEVEL)


def feature_level_of(definition: ViewDefinition) -> int:
    """The level a worker needs to maintain a definition: a filter came with the second."""
    return 2 if definition.filter else 1


def table_of(internal: str) -> str:
    return f"mv_{internal}"


def deltas_table_of(internal: str) -> str:
    return f"mv_{internal}_deltas"


async def read_generation(conn: Any) -> int:
    """Generation of the catalogue; in a statement of its own, after the lock was taken."""
    generation: int = await conn.fetchval("SELECT generation FROM view_generation")
    return generation


async def load_catalogue(conn: Any) -> Catalogue:
    """The catalogue in one statement of a connection or pool, so that generation and views belong
    together."""
    rows = await conn.fetch(
        """
        SELECT g.generation, c.internal, c.name, c.definition::text AS definition,
               c.filter::text AS filter, c.feature_level, c.is_current, c.generation || view_epoch_suffix() AS epoch
        FROM view_generation g LEFT JOIN view_catalogue c ON true
        ORDER BY c.name, c.is_current, c.internal
        """
    )
    views = tuple(
        LiveView(
            definition=_readable_definition(row),
            internal=row["internal"],
            epoch=row["epoch"],
            feature_level=row["feature_level"],
            is_current=row["is_current"],
        )
        for row in rows
        if row["internal"] is not None
    )
    return Catalogue(rows[0]["generation"], views)


def decode_definition(source: str, filter_source: str | None = None) -> ViewDefinition:
    """A definition as the catalogue keeps it."""
    document = msgspec.json.decode(source)
    if filter_source is not None:
        document["filter"] = msgspec.json.decode(filter_source)
    return parse_view(document)


def encode_definition(definition: ViewDefinition) -> str:
    """Without its filter, which has a column of its own."""
    document = definition.to_dict()
    document.pop("filter", None)
    return msgspec.json.encode(document).decode()


def encode_filter(definition: ViewDefinition) -> str | None:
    document = definition.to_dict().get("filter")
    return None if document is None else msgspec.json.encode(document).decode()


def _readable_definition(row: Any) -> ViewDefinition:
    """The definition; of a view that needs a newer release perhaps only its name: it is refused by its
    level, whatever its definition says."""
    try:
        return decode_definition(row["definition"], row["filter"])
    except Rejected:
        if row["feature_level"] <= FEATURE_LEVEL:
            raise
        return ViewDefinition(row["name"], Bucket.HOUR, (), ())


def delta_copy_target(view: LiveView) -> tuple[str, tuple[str, ...]]:
    """(table, columns) that `encode_deltas` writes for; xid comes from the column's default."""
    definition = view.definition
    measures = (measure.name for measure in definition.measures)
    columns = ("lane", "tenant", "bucket", *definition.dimension_columns, *measures, "newest_at")
    return deltas_table_of(view.internal), columns


def lanes_touched(view: LiveView, deltas: Iterable[Group]) -> list[int]:
    """Lanes that a commit with these deltas (or groups) touches, in order."""
    lanes = view.definition.lanes
    return sorted({lane_of(group, lanes) for group in deltas})


def encode_deltas(view: LiveView, deltas: Mapping[Group, Delta]) -> bytes:
    """A whole binary COPY (header, rows, trailer) for `delta_copy_target`."""
    definition = view.definition
    lanes = definition.lanes
    encoders = [
        copy.numeric if measure.aggregate is Aggregate.SUM else copy.int8
        for measure in definition.measures
    ]
    header = copy.row_header(4 + len(definition.dimensions) + len(encoders))
    parts: list[bytes] = []
    for group, delta in deltas.items():
        tenant, bucket, *texts = group
        parts += (header, copy.int2(lane_of(group, lanes)), copy.int4(tenant))
        parts.append(copy.timestamptz(bucket * 1_000_000))
        parts += map(copy.text, texts)
        parts += [encode(value) for encode, value in zip(encoders, delta.measures, strict=True)]
        parts.append(copy.timestamptz(delta.newest_at_us))
    return copy.payload(parts)
