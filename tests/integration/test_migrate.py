"""`coffee-rt migrate`: the schema, and the first API key of an installation that requires keys."""

from __future__ import annotations

import asyncio

import pytest

from coffee_rt.domain.keys import SCOPES, Access, KeyRing, mint_key
from coffee_rt.embedded.keys import list_keys, revoke_key
from coffee_rt.embedded.migrate import MigrateSettings, run_migrate
from coffee_rt.errors import Retryable
from coffee_rt.runtime.settings import DatabaseSettings, SettingsError

pytestmark = pytest.mark.integration

NOBODY_LISTENS = "postgresql://127.0.0.1:1/coffee_rt"


def migrated(url: str, key: str | None = None) -> list[str]:
    """What the command says."""
    said: list[str] = []
    settings = MigrateSettings(database=DatabaseSettings(url=url), key=key)
    asyncio.run(run_migrate(settings, said.append))
    return said


def test_first_run_applies_the_schema_and_registers_the_key(empty_database_url: str) -> None:
    minted = mint_key()
    said = migrated(empty_database_url, minted.text)
    assert said[0] == "applied 0001_orders"
    assert said[-1] == f"registered API key {minted.key_id} (admin)"
    [key] = asyncio.run(list_keys(DatabaseSettings(url=empty_database_url)))
    ring = KeyRing(age_seconds_max=60, fresh_seconds=60)
    ring.load([key], 0.0)
    assert ring.check(minted.text, Access.ADMIN, 1.0).scopes == SCOPES


def test_second_run_changes_nothing(database_url: str) -> None:
    minted = mint_key()
    migrated(database_url, minted.text)
    said = migrated(database_url, minted.text)
    assert said == [
        "The database is up to date.",
        f"API key {minted.key_id} is registered already.",
    ]
    assert len(asyncio.run(list_keys(DatabaseSettings(url=database_url)))) == 1


def test_a_revoked_key_stays_revoked(database_url: str) -> None:
    minted = mint_key()
    migrated(database_url, minted.text)
    database = DatabaseSettings(url=database_url)
    assert asyncio.run(revoke_key(database, minted.key_id))
    assert "revoked and stays so" in migrated(database_url, minted.text)[-1]
    [key] = asyncio.run(list_keys(database))
    assert key.is_revoked


def test_the_id_of_another_key_is_refused(database_url: str) -> None:
    minted = mint_key()
    migrated(database_url, minted.text)
    with pytest.raises(SettingsError, match="another key has the id"):
        migrated(database_url, f"crt_{minted.key_id}_othersecret")


def test_what_is_no_key_is_refused_before_anything_is_done(empty_database_url: str) -> None:
    with pytest.raises(SettingsError, match="COFFEE_RT_MIGRATE_KEY is no API key"):
        migrated(empty_database_url, "hunter2")
    assert migrated(empty_database_url)[0] == "applied 0001_orders"


def test_without_waiting_an_absent_server_fails_at_once() -> None:
    with pytest.raises(Retryable):
        migrated(NOBODY_LISTENS)


def test_waiting_ends_when_the_time_is_over() -> None:
    said: list[str] = []
    settings = MigrateSettings(database=DatabaseSettings(url=NOBODY_LISTENS), wait_seconds=0.1)
    with pytest.raises(Retryable):
        asyncio.run(run_migrate(settings, said.append))
    [line] = said
    assert line.startswith("waiting for PostgreSQL: ")


def test_waiting_ends_when_the_database_is_there(empty_database_url: str) -> None:
    """The server answers and refuses until its database is made, as a bundled one does at its first start."""
    import asyncpg

    server, _, name = empty_database_url.rpartition("/")
    later = f"{name}_later"

    async def both() -> list[str]:
        said: list[str] = []
        heard = asyncio.Event()

        def say(line: str) -> None:
            said.append(line)
            heard.set()

        settings = MigrateSettings(
            database=DatabaseSettings(url=f"{server}/{later}"), wait_seconds=30
        )
        running = asyncio.create_task(run_migrate(settings, say))
        await heard.wait()
        connection = await asyncpg.connect(empty_database_url)
        try:
            await connection.execute(f'CREATE DATABASE "{later}"')
        finally:
            await connection.close()
        await running
        return said

    said = asyncio.run(both())
    assert "does not exist" in said[0]
    assert "applied 0001_orders" in said
