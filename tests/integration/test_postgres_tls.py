"""TLS to PostgreSQL, for everything that speaks to it; and who is refused."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from coffee_rt.errors import Retryable
from coffee_rt.runtime.environment import load, to_environ
from coffee_rt.runtime.settings import DatabaseSettings, SettingsError
from coffee_rt.store.inspect import inspect_database
from coffee_rt.store.migrations import migrate
from coffee_rt.store.pool import create_pool
from tests.integration.test_query_api import served
from tests.tls_front import Papers, make_papers, tls_front

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return make_papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture
def tls_url(database_url: str, papers: Papers) -> Iterator[str]:
    port = urlsplit(database_url).port or 0
    with tls_front(port, papers, is_postgres=True) as front:
        yield database_url.replace(f":{port}/", f":{front}/")


async def refusal(settings: DatabaseSettings) -> str:
    pool = await create_pool(settings)
    try:
        with pytest.raises(Retryable) as caught:
            await pool.fetchval("SELECT 1")
        return str(caught.value)
    finally:
        await pool.close()


async def test_everything_speaks_tls_with_an_authority_of_ones_own(
    tls_url: str, valkey_url: str, redis_namespace: str, papers: Papers
) -> None:
    settings = DatabaseSettings(url=tls_url, replica_url=tls_url, ca_file=papers.ca)
    await migrate(settings.url)
    assert (await inspect_database(settings.url)).missing_migrations == ()
    async with served(settings.url, valkey_url, redis_namespace, database=settings) as platform:
        await platform.get("/api/v1/views")
        await platform.get("/api/v1/views/hourly")
    # As a parent process hands them on.
    assert load(DatabaseSettings, to_environ(settings)).url == settings.url


async def test_who_cannot_prove_who_it_is_is_refused(
    database_url: str, tls_url: str, papers: Papers, tmp_path: Path
) -> None:
    stranger = make_papers(tmp_path / "stranger")
    assert "certificate verify failed" in await refusal(
        DatabaseSettings(url=tls_url, ca_file=stranger.ca)
    )
    elsewhere = make_papers(tmp_path / "elsewhere", "10.0.0.1")
    port = urlsplit(database_url).port or 0
    with tls_front(port, elsewhere, is_postgres=True) as front:
        url = database_url.replace(f":{port}/", f":{front}/")
        assert "certificate" in await refusal(DatabaseSettings(url=url, ca_file=elsewhere.ca))
        # Who it is, but not its name, is checked where the address says so.
        pool = await create_pool(
            DatabaseSettings(url=url + "?sslmode=verify-ca", ca_file=elsewhere.ca)
        )
        assert await pool.fetchval("SELECT 1") == 1
        await pool.close()


async def test_a_server_that_wants_to_know_us_is_shown_our_certificate(
    tls_url: str, valkey_url: str, redis_namespace: str, papers: Papers
) -> None:
    papers.server.verify_mode = ssl.CERT_REQUIRED
    try:
        assert await refusal(DatabaseSettings(url=tls_url, ca_file=papers.ca))
        settings = DatabaseSettings(
            url=tls_url,
            ca_file=papers.ca,
            certificate_file=papers.client,
            key_file=papers.client_key,
        )
        async with served(settings.url, valkey_url, redis_namespace, database=settings) as platform:
            await platform.get("/api/v1/views")
    finally:
        papers.server.verify_mode = ssl.CERT_NONE


async def test_no_plain_text_is_spoken_either_way(
    database_url: str, tls_url: str, papers: Papers
) -> None:
    # A server that has no TLS is refused by us, one that wants it refuses plain text.
    assert await refusal(DatabaseSettings(url=database_url, ca_file=papers.ca))
    assert await refusal(DatabaseSettings(url=tls_url + "?sslmode=disable"))


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require"])
def test_an_authority_beside_an_address_that_checks_nobody_is_refused(
    papers: Papers, mode: str
) -> None:
    environ = {
        "COFFEE_RT_DATABASE_URL": f"postgresql://u:hidden@h/d?sslmode={mode}",
        "COFFEE_RT_DATABASE_CA_FILE": str(papers.ca),
    }
    with pytest.raises(SettingsError, match=f"DATABASE_CA_FILE: can't be used with sslmode={mode}"):
        load(DatabaseSettings, environ)


def test_a_key_without_its_certificate_is_refused(papers: Papers) -> None:
    environ = {
        "COFFEE_RT_DATABASE_CA_FILE": str(papers.ca),
        "COFFEE_RT_DATABASE_KEY_FILE": str(papers.client_key),
    }
    with pytest.raises(SettingsError, match="needs the certificate too"):
        load(DatabaseSettings, environ)
