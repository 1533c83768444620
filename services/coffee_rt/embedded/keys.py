"""API keys by command: made here, stored as hashes, shown once."""

from __future__ import annotations

from dataclasses import dataclass

from coffee_rt.domain.keys import SCOPES, mint_key
from coffee_rt.embedded.server_process import ServerProblem
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.contract import ApiKey
from coffee_rt.store.keys import PostgresApiKeys
from coffee_rt.store.pool import create_pool


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """What a new key is for and may do."""

    name: str
    scopes: frozenset[str]
    tenant: int
    requests_per_minute: int | None


async def add_key(database: DatabaseSettings, request: KeyRequest) -> str:
    """Make and store a key; its text, which exists nowhere else. Raises ServerProblem for a bad scope."""
    unknown = request.scopes - SCOPES
    if unknown:
        raise ServerProblem(
            f"{', '.join(sorted(unknown))} is no scope; there are {', '.join(sorted(SCOPES))}."
        )
    minted = mint_key()
    key = ApiKey(
        key_id=minted.key_id,
        tenant=request.tenant,
        name=request.name,
        secret_hash=minted.secret_hash,
        scopes=request.scopes,
        requests_per_minute=request.requests_per_minute,
        is_revoked=False,
    )
    pool = await create_pool(database)
    try:
        await PostgresApiKeys(pool).add_api_key(key)
    finally:
        await pool.close()
    return minted.text


async def list_keys(database: DatabaseSettings) -> list[ApiKey]:
    pool = await create_pool(database)
    try:
        return await PostgresApiKeys(pool).api_keys()
    finally:
        await pool.close()


async def revoke_key(database: DatabaseSettings, key_id: str) -> bool:
    """Whether there was such a key that still worked."""
    pool = await create_pool(database)
    try:
        return await PostgresApiKeys(pool).revoke_api_key(key_id)
    finally:
        await pool.close()
