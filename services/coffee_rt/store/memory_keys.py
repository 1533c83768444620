"""API keys in memory."""

from __future__ import annotations

from dataclasses import replace

from coffee_rt.errors import Rejected
from coffee_rt.store.contract import ApiKey
from coffee_rt.store.memory_database import MemoryDatabase


class MemoryApiKeys:
    """ApiKeyStore on a MemoryDatabase."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def api_keys(self) -> list[ApiKey]:
        """All keys, revoked ones too."""
        return [key for _, key in sorted(self._database.api_keys.items())]

    async def add_api_key(self, key: ApiKey) -> None:
        """Raises Rejected when the key id is taken."""
        if key.key_id in self._database.api_keys:
            raise Rejected("key-exists", "a key of this id exists", "/key_id", 409)
        self._database.api_keys[key.key_id] = key

    async def revoke_api_key(self, key_id: str) -> bool:
        """Whether there was such a key that was not revoked."""
        key = self._database.api_keys.get(key_id)
        if key is None or key.is_revoked:
            return False
        self._database.api_keys[key_id] = replace(key, is_revoked=True)
        return True
