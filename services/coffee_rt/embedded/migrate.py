"""`coffee-rt migrate`: waits for PostgreSQL, applies what its schema lacks, registers the first API key.

Safe to repeat and from several at once. Where keys are required nobody could make the first one over HTTP,
so an installation (the Helm chart) hands it in as a setting; it gets all scopes, and others are made with
`coffee-rt keys add`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

from coffee_rt.domain.keys import SCOPES, hash_secret, parse_key
from coffee_rt.domain.orders import DEFAULT_TENANT
from coffee_rt.embedded.reach import ToolSettings
from coffee_rt.errors import Rejected, Retryable
from coffee_rt.runtime.settings import DatabaseSettings, SettingsError, own
from coffee_rt.store.contract import ApiKey
from coffee_rt.store.keys import PostgresApiKeys
from coffee_rt.store.migrations import migrate
from coffee_rt.store.pool import create_pool

RETRY_SECONDS = 1.0


class MigrateSettings(ToolSettings):
    """COFFEE_RT_MIGRATE_*, and what reaches the database."""

    process: ClassVar[str] = "migrate"

    wait_seconds: float = own(
        0.0,
        ge=0,
        help="Seconds to wait for a PostgreSQL that does not answer yet; 0: fail at once.",
    )
    key: str | None = own(
        None,
        repr=False,
        help="API key with all scopes to register, crt_<id>_<secret>; none: register none.",
    )
    key_name: str = own("admin", min_length=1, max_length=128, help="Its name in lists of keys.")


async def run_migrate(settings: MigrateSettings, say: Callable[[str], None]) -> None:
    """Bring the schema up to date, then register the key. Raises Retryable when PostgreSQL stays away,
    SettingsError for a key that can't be used."""
    key = _parsed(settings) if settings.key else None
    for name in (applied := await _applied(settings, say)):
        say(f"applied {name}")
    if not applied:
        say("The database is up to date.")
    if key is not None:
        say(await _registered(settings.database, key))


async def _applied(settings: MigrateSettings, say: Callable[[str], None]) -> list[str]:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.wait_seconds
    last = ""
    while True:
        try:
            return await migrate(settings.database.url)
        except Retryable as error:
            if loop.time() >= deadline:
                raise
            if str(error) != last:
                last = str(error)
                say(f"waiting for PostgreSQL: {last}")
        await asyncio.sleep(RETRY_SECONDS)


def _parsed(settings: MigrateSettings) -> ApiKey:
    try:
        key_id, secret = parse_key(settings.key or "")
    except Rejected:
        raise SettingsError(
            "COFFEE_RT_MIGRATE_KEY is no API key: it must read crt_<letters and digits>_<secret>, at "
            "most 128 characters"
        ) from None
    return ApiKey(
        key_id=key_id,
        tenant=DEFAULT_TENANT,
        name=settings.key_name,
        secret_hash=hash_secret(secret),
        scopes=SCOPES,
        requests_per_minute=None,
        is_revoked=False,
    )


async def _registered(database: DatabaseSettings, key: ApiKey) -> str:
    """Register the key unless it is there; what to say. A revoked key stays revoked."""
    pool = await create_pool(database)
    try:
        keys = PostgresApiKeys(pool)
        try:
            await keys.add_api_key(key)
            return f"registered API key {key.key_id} ({key.name})"
        except Rejected:
            known = {each.key_id: each for each in await keys.api_keys()}[key.key_id]
    finally:
        await pool.close()
    if known.secret_hash != key.secret_hash:
        raise SettingsError(
            f"COFFEE_RT_MIGRATE_KEY: another key has the id {key.key_id}; choose another id"
        )
    if known.is_revoked:
        return f"API key {key.key_id} is revoked and stays so; give another one to replace it."
    return f"API key {key.key_id} is registered already."
