"""No secret gets out of the real processes: not into logs, answers, metrics or command lines.

Every secret is one that occurs nowhere else, so that finding it in a text is proof of a leak.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from coffee_rt.domain.keys import mint_key
from coffee_rt.embedded.migrate import MigrateSettings
from coffee_rt.embedded.server_process import free_port
from coffee_rt.fanout.door import Visitor
from coffee_rt.fanout.protocol import SUBPROTOCOL, TOKEN_SUBPROTOCOL
from coffee_rt.runtime.environment import load, masked
from coffee_rt.runtime.settings import SettingsError
from tests.integration.order_api_process import ORDER
from tests.security.leaks import PROCESSES, Started, started, told, until_answered, until_written
from tests.security.test_key_matrix import add_key

pytestmark = pytest.mark.integration

WRONG = "canary-Wr0ngPassw0rd"
TOKEN = "canary-T0kenWithoutF0rm"
ROUTES = {
    "order-api": ("/api/v1/orders", "/api/order", "/nowhere"),
    "query-api": ("/api/v1/views", "/api/v1/views/hourly", "/api/dashboard", "/nowhere"),
    "fanout": ("/", "/api/v1/live", "/nowhere"),
}


def secret_of(url: str) -> str:
    return urlsplit(url).password or ""


def with_password(url: str, password: str, port: int | None = None) -> str:
    parts = urlsplit(url)
    place = f"{parts.username or ''}:{quote(password, safe='')}@127.0.0.1:{port or parts.port}"
    return urlunsplit(parts._replace(netloc=place))


def assert_none_of(secrets: dict[str, str], texts: dict[str, str]) -> None:
    """Names what was found where: the texts themselves are too long to be looked at."""
    found = []
    for where, text in texts.items():
        for name, secret in secrets.items():
            at = text.find(secret)
            if at >= 0:
                found.append(f"{name} in {where}: {text[max(0, at - 150) : at + 100]!r}")
    assert not found, "\n".join(found)


async def test_what_is_sent_and_set_is_told_to_nobody(
    database_url: str, valkey_url: str, redis_namespace: str, tmp_path: Path
) -> None:
    key, unknown = await add_key(database_url, "ingest", "read"), mint_key()
    secrets = {
        "Redis's password": secret_of(valkey_url),
        "PostgreSQL's password": secret_of(database_url),
        "a key": key.text.rpartition("_")[2],
        "an unknown key": unknown.text.rpartition("_")[2],
        "a token that is no key": TOKEN,
    }
    environ = {
        "COFFEE_RT_REDIS_URL": valkey_url,
        "COFFEE_RT_DATABASE_URL": database_url,
        "COFFEE_RT_NAMESPACE": redis_namespace,
        "COFFEE_RT_AUTH": "required",
    }
    texts: dict[str, str] = {}
    async with aiohttp.ClientSession() as client, started(tmp_path, environ) as running:
        for name, one in running.items():
            texts[f"{name}'s readiness"] = await until_answered(
                client, f"{one.address}/readyz", 200
            )
        for token in (key.text, unknown.text, TOKEN):
            for name, paths in ROUTES.items():
                for path in paths:
                    texts |= await answers(client, running[name], path, token)
            texts |= await sockets(running["fanout"], token)
        for name, one in running.items():
            texts[f"{name}'s metrics"] = await until_answered(client, f"{one.address}/metrics", 200)
            texts[f"{name}'s command line"] = one.command_lines()
    texts |= {f"{name}'s log": one.written() for name, one in running.items()}
    assert all("starting" in one.written() for one in running.values())
    assert_none_of(secrets, texts)


async def answers(
    client: aiohttp.ClientSession, one: Started, path: str, token: str
) -> dict[str, str]:
    """What is answered to a token in each place somebody may put it."""
    url, texts = one.address + path, {}
    for where, query, headers in (
        ("bearer", "", {"Authorization": f"Bearer {token}"}),
        ("key", "", {"X-API-Key": token}),
        ("basic", "", {"Authorization": f"Basic {token}"}),
        ("cookie", "", {"Cookie": f"token={token}"}),
        ("query", f"?token={token}&api_key={token}", {}),
    ):
        for method in ("GET", "POST"):
            async with client.request(
                method, url + query, headers=headers, json=ORDER if method == "POST" else None
            ) as reply:
                text = f"{reply.headers}" if "stream" in reply.content_type else await reply.text()
                texts[f"{one.name}'s {method} {path} with {token[:9]} as {where}"] = (
                    f"{reply.headers} {text}"
                )
    return texts


async def sockets(fanout: Started, token: str) -> dict[str, str]:
    """The same of WebSockets: token offered as a subprotocol, in the address, in the hello."""
    url, texts = f"ws://127.0.0.1:{fanout.socket_port}", {}
    for path in ("/ws", "/ws/dashboard", "/nowhere"):
        for query, offered in (
            ("", [f"{TOKEN_SUBPROTOCOL}{token}"]),
            ("", [SUBPROTOCOL, f"{TOKEN_SUBPROTOCOL}{token}"]),
            (f"?token={token}", None),
        ):
            try:
                async with connect(url + path + query, subprotocols=offered) as connection:  # type: ignore[arg-type]
                    await connection.send(f'{{"type":"hello","token":"{token}"}}')
                    heard = str(await connection.recv())
            except WebSocketException as error:
                heard = str(error)
            texts[f"socket {path} {token[:9]} {query[:3]}{len(offered or ())}"] = heard
    return texts


async def test_servers_that_refuse_or_are_away_are_named_without_their_passwords(
    database_url: str, valkey_url: str, redis_namespace: str, tmp_path: Path
) -> None:
    dead = free_port()
    secrets = {"a wrong password": WRONG, "a token": TOKEN}
    texts: dict[str, str] = {}
    for case, port, names in (("refused", None, PROCESSES), ("away", dead, PROCESSES[:1])):
        environ = {
            "COFFEE_RT_REDIS_URL": with_password(valkey_url, WRONG, port),
            "COFFEE_RT_DATABASE_URL": with_password(database_url, WRONG, port),
            "COFFEE_RT_NAMESPACE": redis_namespace,
        }
        folder = tmp_path / case
        async with aiohttp.ClientSession() as client, started(folder, environ, names) as running:
            for name, one in running.items():
                where = f"{name}, its servers {case}"
                texts[f"readiness of {where}"] = await until_answered(
                    client, f"{one.address}/readyz", 503
                )
                texts[f"metrics of {where}"] = await until_answered(
                    client, f"{one.address}/metrics", 200
                )
                for path in ROUTES.get(name, ()):
                    texts |= await answers(client, one, path, TOKEN)
                if name != "query-api":  # It logs nothing of servers that are away.
                    await until_written(one, '"level": "warning"', '"level": "error"')
        texts |= {f"{case} {name}'s log": one.written() for name, one in running.items()}
        for tool in (("doctor",), ("migrate",)):
            texts[f"{case} {tool}"] = told(*tool, **environ)
    assert_none_of(secrets, texts)


@pytest.mark.parametrize(
    "place",
    [
        "me:{}@127.0.0.1:port",
        "me:{}/y@127.0.0.1:1",
        "me:{}?y@127.0.0.1:1",
        "me:{}#y@127.0.0.1:1",
        "me:{} y@127.0.0.1:1",
        "me:1/{}@127.0.0.1:1",
        "me:x?{}@127.0.0.1:1",
        "me:x?a={}@127.0.0.1:1",
        "me:x {}@127.0.0.1:1",
        "me:{}@[::1:1",
    ],
)
@pytest.mark.parametrize(
    "address", ["redis://{}/0", "redis+cluster://{}", "redis+sentinel://{}/m", "postgresql://{}/db"]
)
def test_addresses_that_cannot_be_read_are_refused_without_their_passwords(
    address: str, place: str
) -> None:
    name = "COFFEE_RT_DATABASE_URL" if address.startswith("postgres") else "COFFEE_RT_REDIS_URL"
    with pytest.raises(SettingsError) as caught:
        load(MigrateSettings, {name: address.format(place.format(WRONG))})
    assert str(caught.value).startswith(name)
    assert WRONG not in str(caught.value)


@pytest.mark.parametrize("place", ["me:x@{}@h:1", "me:{}%2F@h:1", ":{}@h:1", "me:{}@[::1]:1"])
def test_addresses_are_shown_without_their_passwords(place: str) -> None:
    name = "COFFEE_RT_DATABASE_URL"
    settings = load(MigrateSettings, {name: f"postgresql://{place.format(WRONG)}/db"})
    shown = masked(settings)
    assert shown[name].startswith("postgresql://***@")
    assert WRONG not in f"{shown} {settings!r}"


def test_the_first_key_is_registered_without_being_told(database_url: str) -> None:
    key = mint_key()
    environ = {"COFFEE_RT_DATABASE_URL": database_url, "COFFEE_RT_MIGRATE_KEY": key.text}
    bad = environ | {"COFFEE_RT_MIGRATE_KEY": f"{key.text}!_{'x' * 200}"}
    texts = {
        "registering": told("migrate", **environ),
        "a bad one": told("migrate", **bad),
        "settings": str(masked(load(MigrateSettings, environ))),
    }
    assert key.key_id in texts["registering"]
    assert_none_of({"the key": key.text.rpartition("_")[2]}, texts)


def test_a_key_that_is_printed_by_mistake_hides_what_opens_doors() -> None:
    key = mint_key()
    secret = key.text.rpartition("_")[2]
    visitor = Visitor(key.text, None, "")
    for text in (repr(key), str(key), repr(visitor), repr(replace(visitor, subprotocol="a"))):
        assert secret not in text
