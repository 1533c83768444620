"""The memory store under injected faults: a commit happened whole or not at all."""

from __future__ import annotations

import pytest

from coffee_rt.errors import Retryable
from tests.builders import an_order
from tests.store_harness import a_write_store, an_entry


@pytest.mark.parametrize(("step", "is_stored"), [("commit", False), ("committed", True)])
async def test_failed_commit_is_whole_or_nothing_and_may_be_repeated(
    step: str, is_stored: bool
) -> None:
    def fail(reached: str) -> None:
        if reached == step:
            raise Retryable("injected")

    entry = an_entry(an_order())
    async with a_write_store(None) as store:
        assert store.database is not None
        store.database.fault_hook = fail
        with pytest.raises(Retryable):
            await store.commit(entry)
        assert bool(store.database.orders) is is_stored
        store.database.fault_hook = None
        [outcome] = (await store.commit(entry)).outcomes
        assert outcome.seen_before is is_stored
        assert len(store.database.orders) == 1
