"""The command `redrive`: dead letters sent again from a shell, as a Redrive object does it in a cluster."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex

from coffee_rt.operator import redrive_plan as plan
from coffee_rt.operator.redrive_plan import RedriveRequest
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.letter_redriver import PostgresLetterRedriver
from coffee_rt.store.pool import create_pool
from coffee_rt.store.redrives import LETTERS_MAX, Outcome


async def run_redrive(
    request: RedriveRequest, database: DatabaseSettings, say: Callable[[str], None]
) -> int:
    """Send the letters; exit code 1 when some are still bad or were skipped. Raises CoffeeRtError."""
    pool = await create_pool(database, application_name="coffee-rt-redrive")
    name = f"command:{token_hex(8)}"
    counts = dict.fromkeys(Outcome, 0)
    after = 0
    try:
        redriver = PostgresLetterRedriver(pool)
        while (left := request.limit - sum(counts.values())) > 0:
            done = await redriver.send(
                request.selection,
                name,
                letters_max=min(LETTERS_MAX, left),
                after=after,
                is_dry_run=request.is_dry_run,
            )
            if not done:
                break
            after = done[-1].id
            counts = plan.add_counts(counts, plan.count_outcomes(done))
            for each in plan.add_samples([], done):
                say(f"  {each['id']} {each['code']}: {each['detail']}")
    finally:
        await pool.close()
    if not any(counts.values()):
        say("No dead letter matches.")
        return 0
    say(f"{plan.sentence(counts, is_dry_run=request.is_dry_run)}.")
    return 1 if counts[Outcome.STILL_BAD] or counts[Outcome.SKIPPED] else 0
