"""The work of a Redrive object: its letters sent again, a batch a transaction.

What was done is read from the letters themselves, so a killed operator's successor knows it exactly; only a
dry run, which leaves no trace, begins anew.
"""

from __future__ import annotations

from typing import Any

from coffee_rt.operator import redrive_plan as plan
from coffee_rt.operator.contract import CustomObject
from coffee_rt.operator.one_shots import End, Report
from coffee_rt.runtime.breaker import CircuitBreaker
from coffee_rt.store.redrives import LETTERS_MAX, LetterRedriver, Outcome

PLURAL = "redrives"


class Redriving:
    """Performs Redrives (see one_shots.Perform)."""

    def __init__(self, redriver: LetterRedriver, database: CircuitBreaker) -> None:
        self._redriver = redriver
        self._database = database

    async def __call__(self, found: CustomObject, report: Report) -> End:
        request = plan.read_request(found.spec)
        name = plan.redrive_name(found.ref.uid)
        counts = dict.fromkeys(Outcome, 0)
        samples: list[Any] = []
        async with self._database:
            if not request.is_dry_run:
                counts = await self._redriver.results(name)
                samples = list(found.status.get("samples") or ())
            left = await self._redriver.count(request.selection, name)
        selected = min(left + sum(counts.values()), request.limit)
        after = 0
        while (tried := sum(counts.values())) < request.limit:
            await report(
                plan.status_of(counts, selected, samples), f"{tried} of {selected} letters"
            )
            async with self._database:
                done = await self._redriver.send(
                    request.selection,
                    name,
                    letters_max=min(LETTERS_MAX, request.limit - tried),
                    after=after,
                    is_dry_run=request.is_dry_run,
                )
            if not done:
                break
            counts = plan.add_counts(counts, plan.count_outcomes(done))
            samples = plan.add_samples(samples, done)
            if request.is_dry_run:
                after = done[-1].id
        told = plan.sentence(counts, is_dry_run=request.is_dry_run)
        return End(plan.status_of(counts, selected, samples), told)
