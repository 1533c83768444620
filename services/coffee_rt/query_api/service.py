"""What query_api can be asked, without HTTP: contracts in, JSON-ready bodies out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coffee_rt.domain.dashboard import (
    RECENT_ORDERS,
    TOP_DRINKS,
    TOP_DRINKS_DAYS,
    build_dashboard,
    choose_view,
    measure_name,
)
from coffee_rt.domain.ids import parse_id
from coffee_rt.domain.views import Aggregate, Field, ViewDefinition
from coffee_rt.errors import Busy, Rejected, Retryable, TooSlow
from coffee_rt.query_api import answers, metrics, parameters
from coffee_rt.query_api.finding import OrderFinder
from coffee_rt.query_api.freshness import LagTracker
from coffee_rt.query_api.positions import wait_until_stored
from coffee_rt.query_api.routing import Page
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.runtime.clock import Clock
from coffee_rt.store.contract import OrderReader
from coffee_rt.store.view_contract import (
    ViewAnswer,
    ViewCatalogueStore,
    ViewQuery,
    ViewReader,
    ViewState,
)
from coffee_rt.streams.contract import Position

ORDERS_DEFAULT = 50
ORDERS_MAX = 500
TOP_SPAN_DEFAULT = f"{TOP_DRINKS_DAYS}d"
DAY_SECONDS = 86400


class QueryService:
    """Stateless but for the cached catalogue; shared by all requests."""

    def __init__(
        self,
        *,
        primary: ViewReader,
        replica: ViewReader | None,
        replica_breaker: CircuitBreaker,
        catalogue: ViewCatalogueStore,
        orders: OrderReader,
        finder: OrderFinder,
        lag: LagTracker,
        database: CircuitBreaker,
        clock: Clock,
        decimals: int,
        position_wait_seconds: float,
        catalogue_seconds: float,
    ) -> None:
        self._primary = primary
        self._replica = replica
        self._replica_breaker = replica_breaker
        self._catalogue = catalogue
        self._orders = orders
        self._finder = finder
        self._lag = lag
        self._database = database
        self._clock = clock
        self._decimals = decimals
        self._position_wait_seconds = position_wait_seconds
        self._catalogue_seconds = catalogue_seconds
        self._views: dict[str, ViewState] = {}
        self._views_until = float("-inf")

    async def views(self) -> Page:
        """All views, maintained or still being backfilled."""
        states = await self._known_views()
        return Page({"views": [answers.view_description(state) for state in states.values()]})

    async def view(self, tenant: int, name: str, query: parameters.Parameters) -> Page:
        """Rows of a view between two times."""
        definition = (await self._view_named(name)).definition
        parsed = parameters.parse_view_query(definition, query, tenant, int(self._clock.now()))
        answer, headers = await self._read(parsed, parameters.single(query, "position"))
        return Page(answers.view_page(parsed, definition, answer, self._decimals), headers)

    async def top(self, tenant: int, name: str | None, query: parameters.Parameters) -> Page:
        """The best N values of a dimension; without a name, of the cheapest view that has it."""
        by = parameters.single(query, "by") or "drink"
        definition = await self._view_for_top(name, by)
        counted = measure_name(definition, Aggregate.COUNT, Field.ORDERS)
        measure = parameters.single(query, "measure") or counted or definition.measures[0].name
        parsed = parameters.top_query(
            definition,
            query,
            tenant=tenant,
            now_seconds=int(self._clock.now()),
            by=by,
            measure=measure,
            span_default=TOP_SPAN_DEFAULT,
            count_default=TOP_DRINKS,
        )
        answer, headers = await self._read(parsed, parameters.single(query, "position"))
        body = answers.view_page(parsed, definition, answer, self._decimals)
        return Page(body | {"by": by, "measure": measure}, headers)

    async def order(self, tenant: int, text: str) -> Page:
        """One order by id. Raises Rejected (404) when this tenant has no such order."""
        order_id = parse_id(text)
        found = await self._finder.find(tenant, order_id)
        if found is None:
            raise Rejected("no-such-order", "no order has this id", "/order_id", 404)
        body: dict[str, Any] = {"state": found.state}
        if found.order is not None:
            body |= answers.order_body(found.order, self._decimals)
        if found.dead_letter is not None:
            body["dead_letter"] = answers.dead_letter_body(found.dead_letter)
        if found.position is not None:
            body["position"] = str(found.position)
        source = "log" if found.state == "logged" else "primary"
        return Page(body, {"X-Data-Source": source})

    async def recent_orders(self, tenant: int, query: parameters.Parameters) -> Page:
        """Newest orders first, in pages."""
        parameters.refuse_unknown(query, {"limit", "before", "store"})
        before = parameters.single(query, "before")
        limit = parameters.parse_limit(query, ORDERS_DEFAULT, ORDERS_MAX)
        below = None if before is None else parse_id(before, "before")
        store = parameters.text_filter(query, "store")
        async with self._database:
            rows = await self._orders.recent_orders(tenant, limit, below, store)
        shown = [answers.order_body(row.order, self._decimals) for row in rows]
        cursor = shown[-1]["order_id"] if len(shown) == limit else None
        return Page({"orders": shown, "next": cursor}, self._headers("primary"))

    async def dashboard(self, tenant: int) -> Page:
        """The published dashboard object."""
        now = self._clock.now()
        states = await self._known_views()
        view = choose_view((state.definition for state in states.values()), ["drink"], 3600)
        hour_start = int(now) // 3600 * 3600
        hour = month = []
        if view is not None:
            hour = await self._drinks(view, tenant, hour_start, hour_start + 3600)
            month = await self._drinks(
                view, tenant, hour_start - TOP_DRINKS_DAYS * DAY_SECONDS, hour_start + 3600
            )
        async with self._database:
            recent = await self._orders.recent_orders(tenant, RECENT_ORDERS)
        body = build_dashboard(
            now_us=int(now * 1_000_000),
            decimals=self._decimals,
            hour_drinks=hour,
            month_drinks=month,
            recent=[row.order for row in recent],
        )
        return Page(body, self._headers("primary"))

    async def _drinks(
        self, view: ViewDefinition, tenant: int, start: int, end: int
    ) -> list[Mapping[str, Any]]:
        orders = measure_name(view, Aggregate.COUNT, Field.ORDERS)
        revenue = measure_name(view, Aggregate.SUM, Field.REVENUE)
        if orders is None or revenue is None:
            return []
        query = ViewQuery(
            view=view.name,
            tenant=tenant,
            start=start,
            end=end,
            group_by=("drink",),
            is_total=True,
            order_by=orders,
            limit=parameters.ROWS_MAX,
        )
        async with self._database:
            answer = await self._primary.query(query)
        return [
            {"drink": row["drink"], "orders": row[orders], "revenue": row[revenue]}
            for row in answer.rows
        ]

    async def _read(
        self, query: ViewQuery, position_text: str | None
    ) -> tuple[ViewAnswer, dict[str, str]]:
        included = None
        answer = None
        if position_text is not None:
            position = Position.parse(position_text)
            async with self._database:
                included = await wait_until_stored(
                    self._orders, position, self._position_wait_seconds, self._clock
                )
        elif self._replica is not None:
            answer = await self._read_replica(self._replica, query)
        source = "primary" if answer is None else "replica"
        if answer is None:
            async with self._database:
                answer = await self._primary.query(query)
        if answer.is_tail_skipped:
            metrics.TAILS_SKIPPED.inc()
        headers = self._headers(source, answer)
        if included is not None:
            headers["X-Position-Included"] = "true" if included else "false"
        return answer, headers

    async def _read_replica(self, replica: ViewReader, query: ViewQuery) -> ViewAnswer | None:
        """None while the replica is away: the primary answers then, and must not be blamed for it."""
        try:
            async with self._replica_breaker:
                return await replica.query(query)
        except (TooSlow, Busy):
            # The primary must not be asked the same dear questions again.
            raise
        except Retryable:
            return None

    def _headers(self, source: str, answer: ViewAnswer | None = None) -> dict[str, str]:
        headers = {"X-Data-Source": source, "Cache-Control": "no-store"}
        lag_ms = self._lag.replica_lag_ms if source == "replica" else self._lag.lag_ms
        if lag_ms is not None:
            headers["X-Data-Lag-Ms"] = str(lag_ms)
        if answer is not None:
            headers["X-View-Version"] = f"{answer.epoch}:{answer.version}"
            headers["X-View-Unfolded"] = "skipped" if answer.is_tail_skipped else "included"
        return headers

    async def _known_views(self) -> dict[str, ViewState]:
        if self._clock.monotonic() >= self._views_until:
            async with self._database:
                states = await self._catalogue.views()
            self._views = {state.definition.name: state for state in states if state.is_current}
            self._views_until = self._clock.monotonic() + self._catalogue_seconds
        return self._views

    async def _view_named(self, name: str) -> ViewState:
        state = (await self._known_views()).get(name)
        if state is None:
            # It may have been created a moment ago: the cache must not deny it.
            self._views_until = float("-inf")
            state = (await self._known_views()).get(name)
        if state is None:
            known = ", ".join(sorted(self._views)) or "none yet"
            raise Rejected(
                "unknown-view", f"no view has this name; there are: {known}", "name", 404
            )
        return state

    async def _view_for_top(self, name: str | None, by: str) -> ViewDefinition:
        if name is not None:
            return (await self._view_named(name)).definition
        states = await self._known_views()
        view = choose_view((state.definition for state in states.values()), [by], DAY_SECONDS)
        if view is None:
            raise Rejected("bad-parameter", "no view has this dimension", "by", 400)
        return view
