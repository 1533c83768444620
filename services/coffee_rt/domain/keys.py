"""API keys: their text, their hash, and the ring a process checks requests against. Pure.

A key reads `crt_<key id>_<secret>`: the id is public and names the key in lists and logs, the secret is 256
random bits, so a plain fast hash of it is safe at rest. Rings are loaded from the store by each process's
wiring and stay usable while the store is away, up to an age limit: then 503, never 401,
which would tell clients to throw good keys away.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from hmac import compare_digest
from typing import Protocol

from coffee_rt.domain.orders import DEFAULT_TENANT
from coffee_rt.errors import Overload, Rejected

PREFIX = "crt_"
KEY_ID_BYTES = 6
SECRET_BYTES = 32
KEY_TEXT_MAX = 128
"""A longer text is no key; refused before anything looks at it."""
_HASH_BYTES = 32
_NO_HASH = b"\x00" * _HASH_BYTES


class Access(Enum):
    """What a key may be used for."""

    INGEST = "ingest"
    READ = "read"
    ADMIN = "admin"


SCOPES = frozenset(access.value for access in Access)


class KnownKey(Protocol):
    """What the ring needs of a key as the store keeps it (store.contract.ApiKey)."""

    @property
    def key_id(self) -> str: ...
    @property
    def tenant(self) -> int: ...
    @property
    def secret_hash(self) -> bytes: ...
    @property
    def scopes(self) -> frozenset[str]: ...
    @property
    def requests_per_minute(self) -> int | None: ...
    @property
    def is_revoked(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key: `text` is shown once to whoever asked for it; only the hash is stored."""

    key_id: str
    text: str = field(repr=False)
    secret_hash: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from, as far as limits and tenants care. `key_id` is empty without a key."""

    tenant: int
    key_id: str = ""
    requests_per_minute: int | None = None
    scopes: frozenset[str] = SCOPES


ANYONE = Principal(DEFAULT_TENANT)
"""Every caller, where keys are off."""


def mint_key(random: Callable[[int], bytes] = os.urandom) -> MintedKey:
    key_id, secret = random(KEY_ID_BYTES).hex(), random(SECRET_BYTES).hex()
    return MintedKey(key_id, f"{PREFIX}{key_id}_{secret}", hash_secret(secret))


def hash_secret(secret: str) -> bytes:
    """What is kept of a secret."""
    return blake2b(secret.encode(), digest_size=_HASH_BYTES, person=b"coffee-rt key").digest()


def parse_key(text: str) -> tuple[str, str]:
    """(key id, secret) of a key's text. Raises Rejected(401) when it is no key."""
    key_id, separator, secret = text[len(PREFIX) :].partition("_")
    if (
        not text.startswith(PREFIX)
        or len(text) > KEY_TEXT_MAX
        or not separator
        or not key_id.isalnum()
        or not secret.isascii()
        or not secret
    ):
        raise Rejected("bad-api-key", "The API key is not valid.", status=401)
    return key_id, secret


def token_of(authorization: str | None, api_key: str | None) -> str | None:
    """The key's text from the headers `Authorization: Bearer` and `X-API-Key`; None when there is none.

    Raises Rejected(401) for another scheme, or for two different keys.
    """
    token = None
    if authorization is not None:
        scheme, _, rest = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Rejected("bad-api-key", "Authorization must be: Bearer <API key>.", status=401)
        token = rest.strip()
    if api_key is not None:
        if token is not None and token != api_key:
            raise Rejected("bad-api-key", "Two different API keys were sent.", status=401)
        token = api_key
    return token


class KeyRing:
    """The keys of one process, as last loaded. Replaced whole by `load`; shared by all tasks.

    `now` is any clock that only rises, in seconds. `fresh_seconds` is how soon a new key must be known:
    older than that, an unknown key is answered with 503, since it may be new; older than
    `age_seconds_max`, so is every key, since it may have been revoked.
    """

    def __init__(self, *, age_seconds_max: float, fresh_seconds: float) -> None:
        self._age_seconds_max = age_seconds_max
        self._fresh_seconds = fresh_seconds
        self._keys: dict[str, KnownKey] = {}
        self._principals: dict[str, Principal] = {}
        self._loaded_at: float | None = None
        self.has_missed = False
        """Whether a key was asked for since the last load that the ring does not know: it may be new."""
        self.generation = 0
        """Higher after a load that brought anything new: what was allowed before must be asked for again."""

    def load(self, keys: Iterable[KnownKey], now: float) -> None:
        loaded = {key.key_id: key for key in keys}
        if loaded != self._keys:
            self.generation += 1
        self._keys = loaded
        self._principals = {
            key.key_id: Principal(key.tenant, key.key_id, key.requests_per_minute, key.scopes)
            for key in self._keys.values()
        }
        self._loaded_at = now
        self.has_missed = False

    def age_seconds(self, now: float) -> float:
        """Since the last load; infinite before the first."""
        return float("inf") if self._loaded_at is None else now - self._loaded_at

    def check(self, token: str | None, access: Access, now: float) -> Principal:
        """Who the token belongs to. Raises Rejected (401 unknown or revoked, 403 scope) or Overload (503)."""
        if token is None:
            raise Rejected(
                "no-api-key", "Send an API key: Authorization: Bearer <key>.", status=401
            )
        key_id, secret = parse_key(token)
        age = self.age_seconds(now)
        if age > self._age_seconds_max:
            raise Overload("keys-unavailable", "API keys can't be checked at the moment.", 5.0)
        key = self._keys.get(key_id)
        # Hashed and compared also for an unknown id, so that the time taken does not tell which ids exist.
        matches = compare_digest(hash_secret(secret), key.secret_hash if key else _NO_HASH)
        if key is None:
            self.has_missed = True
            if age > self._fresh_seconds:
                raise Overload("keys-unavailable", "API keys can't be checked at the moment.", 5.0)
            raise Rejected("bad-api-key", "The API key is not valid.", status=401)
        if not matches or key.is_revoked:
            raise Rejected("bad-api-key", "The API key is not valid.", status=401)
        if access.value not in key.scopes:
            raise Rejected(
                "wrong-scope", f"The API key lacks the scope {access.value!r}.", status=403
            )
        return self._principals[key_id]
