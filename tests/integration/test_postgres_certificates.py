"""A PostgreSQL that wants to know its clients by certificate (`clientcert=verify-full`), for all processes.

These need a PostgreSQL with TLS on the machine, and are there only where it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from coffee_rt.errors import Retryable
from coffee_rt.runtime.settings import DatabaseSettings
from coffee_rt.store.migrations import migrate
from coffee_rt.store.pool import create_pool
from tests.certified_postgres import USER, CertifiedPostgres, programs
from tests.security.leaks import PROCESSES, started, until_answered
from tests.tls_front import Papers, make_papers

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return make_papers(tmp_path_factory.mktemp("papers"), client=USER)


@pytest.fixture(scope="module")
def certified_url(papers: Papers) -> Iterator[str]:
    found = programs()
    assert found is not None
    # Not in pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="coffee-rt-test-") as name:
        Path(name).chmod(0o777)
        server = CertifiedPostgres(Path(name) / "data", found, papers)
        server.start()
        yield server.url
        server.stop()


async def test_every_process_shows_its_certificate(
    certified_url: str, valkey_url: str, redis_namespace: str, papers: Papers, tmp_path: Path
) -> None:
    environ = {
        "COFFEE_RT_DATABASE_URL": certified_url,
        "COFFEE_RT_DATABASE_CA_FILE": str(papers.ca),
        "COFFEE_RT_DATABASE_CERTIFICATE_FILE": str(papers.client),
        "COFFEE_RT_DATABASE_KEY_FILE": str(papers.client_key),
        "COFFEE_RT_REDIS_URL": valkey_url,
        "COFFEE_RT_NAMESPACE": redis_namespace,
    }
    settings = DatabaseSettings(
        url=certified_url,
        ca_file=papers.ca,
        certificate_file=papers.client,
        key_file=papers.client_key,
    )
    await migrate(settings.url)
    async with (
        aiohttp.ClientSession() as client,
        started(tmp_path / "logs", environ) as running,
    ):
        for name in PROCESSES:
            await until_answered(client, f"{running[name].address}/readyz", 200)
        pool = await create_pool(settings)
        shown = await pool.fetch(
            "SELECT DISTINCT ssl, client_serial IS NOT NULL FROM pg_stat_ssl"
            " JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'coffee-rt%'"
        )
        await pool.close()
        assert [tuple(row) for row in shown] == [(True, True)]


async def test_who_shows_none_or_anothers_is_refused(
    certified_url: str, papers: Papers, tmp_path: Path
) -> None:
    stranger = make_papers(tmp_path / "stranger", client=USER)
    other = papers.issue(tmp_path / "other", "somebody_else")
    for certificate, key, reason in (
        (None, None, "requires a valid client certificate"),
        (stranger.client, stranger.client_key, "unknown ca|unknown_ca|connection"),
        (*other, "authentication failed for user"),
    ):
        settings = DatabaseSettings(
            url=certified_url, ca_file=papers.ca, certificate_file=certificate, key_file=key
        )
        pool = await create_pool(settings)
        with pytest.raises(Retryable, match=f"(?i){reason}"):
            await pool.fetchval("SELECT 1")
        await pool.close()
