"""API keys: what is stored never opens anything; away is 503, wrong is 401, too little is 403."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coffee_rt.domain.keys import Access, KeyRing, hash_secret, mint_key, parse_key, token_of
from coffee_rt.errors import CoffeeRtError, Overload, Rejected
from coffee_rt.store.contract import ApiKey

MINTED = mint_key()
KEY = ApiKey(
    MINTED.key_id, 3, "till", MINTED.secret_hash, frozenset({"ingest"}), 600, is_revoked=False
)


def ring(*keys: ApiKey) -> KeyRing:
    made = KeyRing(age_seconds_max=3600, fresh_seconds=15)
    made.load(keys, 0.0)
    return made


def refusal(
    made: KeyRing, token: str | None, now: float = 1.0, access: Access = Access.INGEST
) -> CoffeeRtError:
    with pytest.raises(CoffeeRtError) as caught:
        made.check(token, access, now)
    return caught.value


def test_a_minted_key_opens_its_tenant() -> None:
    principal = ring(KEY).check(MINTED.text, Access.INGEST, 1.0)
    assert (principal.tenant, principal.key_id) == (3, MINTED.key_id)
    assert principal.requests_per_minute == 600


def test_the_secret_is_not_in_what_is_stored() -> None:
    _key_id, secret = parse_key(MINTED.text)
    assert secret.encode() not in MINTED.secret_hash
    assert hash_secret(secret) == MINTED.secret_hash
    assert mint_key().text != MINTED.text


@pytest.mark.parametrize(
    "token",
    [None, "", "x", "crt_", "crt__x", "crt_abc_", "crt_" + "a" * 200, "crt_ab é_x", "crt_abc_wrong",
     MINTED.text + "0", MINTED.text[:-1], MINTED.text.upper()],
    ids=["none", "empty", "x", "prefix", "no id", "no secret", "long", "no ascii", "unknown", "longer", "shorter",
         "upper"],
)  # fmt: skip
def test_what_is_no_known_key_is_401(token: str | None) -> None:
    error = refusal(ring(KEY), token)
    assert isinstance(error, Rejected)
    assert error.status == 401


def test_a_revoked_key_is_401_and_a_lacking_scope_403() -> None:
    error = refusal(ring(replace(KEY, is_revoked=True)), MINTED.text)
    assert isinstance(error, Rejected)
    assert error.status == 401
    error = refusal(ring(KEY), MINTED.text, access=Access.READ)
    assert isinstance(error, Rejected)
    assert error.status == 403


def test_keys_stay_usable_while_the_store_is_away_up_to_their_age() -> None:
    made = ring(KEY)
    assert made.check(MINTED.text, Access.INGEST, 3600.0).tenant == 3
    error = refusal(made, MINTED.text, now=3601.0)
    assert isinstance(error, Overload)
    assert error.status == 503


def test_an_unknown_key_is_503_while_it_may_simply_be_new() -> None:
    made = ring(KEY)
    other = mint_key().text
    assert isinstance(refusal(made, other, now=15.0), Rejected)
    assert isinstance(refusal(made, other, now=16.0), Overload)


def test_before_the_first_load_every_key_is_503() -> None:
    made = KeyRing(age_seconds_max=3600, fresh_seconds=15)
    assert isinstance(refusal(made, MINTED.text), Overload)
    assert made.age_seconds(5.0) == float("inf")


def test_the_token_comes_from_either_header() -> None:
    assert token_of("Bearer abc", None) == "abc"
    assert token_of("bearer  abc ", "abc") == "abc"
    assert token_of(None, "abc") == "abc"
    assert token_of(None, None) is None
    for authorization, api_key in [("Basic abc", None), ("Bearer a", "b")]:
        with pytest.raises(Rejected) as caught:
            token_of(authorization, api_key)
        assert caught.value.status == 401


def test_a_key_found_right_is_still_bound_by_scope_age_and_revocation() -> None:
    made = ring(KEY)
    for _ in range(2):
        assert made.check(MINTED.text, Access.INGEST, 1.0).tenant == 3
    assert isinstance(refusal(made, MINTED.text, access=Access.ADMIN), Rejected)
    assert isinstance(refusal(made, MINTED.text, now=3601.0), Overload)
    made.load([replace(KEY, is_revoked=True)], 2.0)
    assert isinstance(refusal(made, MINTED.text, now=3.0), Rejected)
