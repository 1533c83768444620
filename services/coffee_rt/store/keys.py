"""API keys in PostgreSQL. Only hashes of secrets are here; checking them is not the store's."""

from __future__ import annotations

import asyncpg

from coffee_rt.errors import Rejected, Retryable
from coffee_rt.store.contract import ApiKey
from coffee_rt.store.pool import Pool


class PostgresApiKeys:
    """ApiKeyStore on PostgreSQL. Shared by all tasks; callers cache what they read."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def api_keys(self) -> list[ApiKey]:
        """All keys, revoked ones too."""
        try:
            rows = await self._pool.fetch(
                """SELECT key_id, tenant, name, secret_hash, scopes, requests_per_minute,
                revoked_at IS NOT NULL AS is_revoked FROM api_keys ORDER BY key_id"""
            )
        except asyncpg.UndefinedTableError:
            # A process may start before the migrations: no reason to end it.
            raise Retryable("the database has no API keys yet: run coffee-rt migrate") from None
        return [ApiKey(**{**row, "scopes": frozenset(row["scopes"])}) for row in rows]

    async def add_api_key(self, key: ApiKey) -> None:
        """Raises Rejected when the key id is taken."""
        try:
            await self._pool.execute(
                """INSERT INTO api_keys (key_id, tenant, name, secret_hash, scopes,
                requests_per_minute, revoked_at)
                VALUES ($1, $2, $3, $4, $5, $6, CASE WHEN $7 THEN now() END)""",
                key.key_id,
                key.tenant,
                key.name,
                key.secret_hash,
                sorted(key.scopes),
                key.requests_per_minute,
                key.is_revoked,
            )
        except asyncpg.UniqueViolationError:
            raise Rejected("key-exists", "a key of this id exists", "/key_id", 409) from None

    async def revoke_api_key(self, key_id: str) -> bool:
        """Whether there was such a key that was not revoked."""
        status = await self._pool.execute(
            "UPDATE api_keys SET revoked_at = now() WHERE key_id = $1 AND revoked_at IS NULL",
            key_id,
        )
        return status == "UPDATE 1"
