"""Settings come from the environment only, are refused when unknown, and never show a secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import pytest

from coffee_rt.callers.settings import CallerSettings
from coffee_rt.fanout.settings import FanoutSettings
from coffee_rt.order_api.settings import OrderApiSettings
from coffee_rt.query_api.settings import QueryApiSettings
from coffee_rt.runtime.addresses import mask_credentials
from coffee_rt.runtime.environment import describe, load, masked, to_environ
from coffee_rt.runtime.settings import (
    DatabaseSettings,
    ProcessSettings,
    RedisSettings,
    SettingsError,
    own,
    shared,
)

SOURCE = Path(__file__).parents[2] / "services" / "coffee_rt"
DOORS = [OrderApiSettings, QueryApiSettings, FanoutSettings]


class TillSettings(ProcessSettings):
    process: ClassVar[str] = "worker"

    linger_ms: int = own(20, ge=0, le=1000, help="How long a batch waits, in milliseconds.")
    origins: tuple[str, ...] = own((), help="Allowed origins, with commas.")
    limit: int | None = own(None, help="A limit; none: no limit.")
    http_port: int = shared(8003, ge=0, le=65535, help="Port to listen on.")
    redis: RedisSettings = RedisSettings()
    database: DatabaseSettings = DatabaseSettings()


def test_defaults_hold_in_an_empty_environment() -> None:
    settings = load(TillSettings, {})
    assert (settings.linger_ms, settings.http_port, settings.shards) == (20, 8003, 4)
    assert settings.redis.url == "redis://127.0.0.1:6379/0"
    assert settings.instance


def test_each_kind_of_name_reaches_its_field() -> None:
    settings = load(
        TillSettings,
        {
            "COFFEE_RT_NAMESPACE": "till",
            "COFFEE_RT_WORKER_LINGER_MS": "7",
            "COFFEE_RT_WORKER_ORIGINS": "https://a, https://b",
            "COFFEE_RT_WORKER_LIMIT": "",
            "COFFEE_RT_REDIS_URL": "redis://elsewhere/1",
            "COFFEE_RT_DATABASE_POOL_SIZE_MAX": "3",
        },
    )
    assert settings.namespace == "till"
    assert settings.linger_ms == 7
    assert settings.origins == ("https://a", "https://b")
    assert settings.limit is None
    assert settings.redis.url == "redis://elsewhere/1"
    assert settings.database.pool_size_max == 3


def test_making_settings_directly_ignores_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COFFEE_RT_WORKER_LINGER_MS", "999")
    assert TillSettings().linger_ms == 20


def test_unknown_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SettingsError) as refusal:
        load(TillSettings, {"COFFEE_RT_WORKER_LINGER": "7"})
    assert "COFFEE_RT_WORKER_LINGER is not a setting" in str(refusal.value)
    assert "COFFEE_RT_WORKER_LINGER_MS" in str(refusal.value)


def test_names_of_other_processes_and_of_service_links_are_ignored() -> None:
    load(
        TillSettings,
        {
            "COFFEE_RT_FANOUT_SOCKETS_MAX": "5",
            "COFFEE_RT_WORKER_SERVICE_HOST": "10.0.0.1",
            "COFFEE_RT_WORKER_PORT": "tcp://10.0.0.1:80",
            "COFFEE_RT_WORKER_PORT_80_TCP_ADDR": "10.0.0.1",
            "PATH": "/bin",
        },
    )


def test_settings_of_a_server_a_process_does_not_use_are_no_error() -> None:
    load(ProcessSettings, {"COFFEE_RT_DATABASE_URL": "postgresql://db/x"})


def test_every_bad_value_is_named_in_one_error() -> None:
    with pytest.raises(SettingsError) as refusal:
        load(TillSettings, {"COFFEE_RT_WORKER_LINGER_MS": "-1", "COFFEE_RT_HTTP_PORT": "high"})
    lines = str(refusal.value).splitlines()
    assert len(lines) == 2
    assert any(line.startswith("COFFEE_RT_WORKER_LINGER_MS: ") for line in lines)
    assert any(line.startswith("COFFEE_RT_HTTP_PORT: ") and "'high'" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("COFFEE_RT_REDIS_URL", ("", " ", "redis", "http://cache", "redis://cache:x")),
        ("COFFEE_RT_DATABASE_URL", ("", " ", "mysql://db/x", "postgresql://[db/x")),
        ("COFFEE_RT_HTTP_PORT", ("", "-1", "65536", "1e3", "0x10")),
        ("COFFEE_RT_SHARDS", ("0", "-1", str(2**63), "4.5")),
        ("COFFEE_RT_GRACE_SECONDS", ("0", "-1", "nan", "inf", "-inf", "1e400")),
        ("COFFEE_RT_REDIS_COMMAND_SECONDS_MAX", ("inf",)),
        ("COFFEE_RT_NAMESPACE", ("", "a b", "a\nb", "x" * 65, "é")),
        ("COFFEE_RT_AUTH", ("", "Off", "none")),
        ("COFFEE_RT_WORKER_LINGER_MS", ("", "-5", "1001")),
    ],
)
def test_values_that_can_not_be_are_refused_by_name(name: str, texts: tuple[str, ...]) -> None:
    for text in texts:
        with pytest.raises(SettingsError) as refusal:
            load(TillSettings, {name: text})
        assert str(refusal.value).startswith(f"{name}: "), text


def test_settings_are_frozen() -> None:
    settings = load(TillSettings, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.linger_ms = 1


def test_printed_settings_hide_credentials() -> None:
    settings = load(TillSettings, {"COFFEE_RT_DATABASE_URL": "postgresql://me:hunter2@db/orders"})
    shown = masked(settings)
    assert shown["COFFEE_RT_DATABASE_URL"] == "postgresql://***@db/orders"
    assert shown["COFFEE_RT_WORKER_LINGER_MS"] == "20"
    assert "hunter2" not in repr(settings) + str(shown)
    assert mask_credentials("redis://:s3@h:1/0 down") == "redis://***@h:1/0 down"


def test_an_address_that_is_no_secret_is_printed_without_its_password() -> None:
    url = "http://me:hidden@collector:4318"
    settings = load(ProcessSettings, {"COFFEE_RT_OTLP_ENDPOINT": url})
    assert masked(settings)["COFFEE_RT_OTLP_ENDPOINT"] == "http://***@collector:4318"
    with pytest.raises(SettingsError) as caught:
        load(ProcessSettings, {"COFFEE_RT_HTTP_PORT": url})
    assert "hidden" not in str(caught.value)


def test_a_child_gets_the_same_settings() -> None:
    settings = load(TillSettings, {"COFFEE_RT_WORKER_ORIGINS": "a,b", "COFFEE_RT_SHARDS": "7"})
    assert load(TillSettings, to_environ(settings)) == settings


def test_every_setting_explains_itself() -> None:
    names = [setting.name for setting in describe(TillSettings)]
    assert "COFFEE_RT_WORKER_LINGER_MS" in names
    assert "COFFEE_RT_DATABASE_URL" in names
    assert len(set(names)) == len(names)
    for setting in describe(TillSettings):
        assert len(setting.help) > 15, setting.name


def test_environment_is_read_in_one_module_only() -> None:
    # Replacing it, in a fork that becomes another process, is no reading.
    reading = re.compile(r"\bos\.(environ(?!\.(clear|update)\()|getenv)\b|from os import .*environ")
    readers = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if reading.search(path.read_text())
    }
    assert readers == {"runtime/environment.py"}


@pytest.mark.parametrize("cls", DOORS)
def test_open_doors_are_refused_beyond_loopback(cls: type[ProcessSettings]) -> None:
    assert cls(auth="off", http_host="127.0.0.1")
    assert cls(auth="required", http_host="0.0.0.0")
    with pytest.raises(SettingsError, match="loopback"):
        cls(auth="off", http_host="0.0.0.0")


@pytest.mark.parametrize("cls", DOORS)
@pytest.mark.parametrize("text", ["everybody", "10.0.0.0/33", "10.1.2.3/8"])
def test_a_proxy_that_is_no_network_is_refused_by_its_variables_name(
    cls: type[CallerSettings], text: str
) -> None:
    name = variable(cls, "TRUSTED_PROXIES")
    with pytest.raises(SettingsError, match=rf"\A{name}: .*{text}"):
        load(cls, {name: f"127.0.0.1,{text}"})
    networks = load(cls, {name: "192.0.2.7, 2001:db8::/32"}).proxy_networks
    assert [str(network) for network in networks] == ["192.0.2.7/32", "2001:db8::/32"]


@pytest.mark.parametrize("cls", DOORS)
def test_keys_that_would_be_too_old_between_two_loads_are_refused(
    cls: type[CallerSettings],
) -> None:
    refresh, age = variable(cls, "KEYS_REFRESH_SECONDS"), variable(cls, "KEYS_AGE_SECONDS_MAX")
    with pytest.raises(SettingsError, match=rf"\A{age} is 60, below {refresh} \(61\)"):
        load(cls, {refresh: "61", age: "60"})
    assert load(cls, {refresh: "60", age: "60"}).keys_age_seconds_max == 60


def variable(cls: type[ProcessSettings], field: str) -> str:
    return f"COFFEE_RT_{cls.process.upper().replace('-', '_')}_{field}"


def test_the_socket_address_counts_as_a_door() -> None:
    with pytest.raises(SettingsError, match="loopback"):
        FanoutSettings(auth="off", websocket_host="0.0.0.0")
