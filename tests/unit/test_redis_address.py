"""An address of Redis is taken apart, or refused in a sentence that shows no secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from coffee_rt.redis_nodes.connections import Node
from coffee_rt.redis_nodes.nodes import node_of
from coffee_rt.runtime.addresses import mask_credentials
from coffee_rt.runtime.environment import load, masked
from coffee_rt.runtime.redis_address import parse_redis_address
from coffee_rt.runtime.settings import ProcessSettings, RedisSettings, SettingsError

SECRET = "s3cret"
SENTINEL = f"redis+sentinel://till:{SECRET}@a:26380,b,[::1]:5/coffee/2?sentinel_password=other"


class TillSettings(ProcessSettings):
    redis: RedisSettings = RedisSettings()


def test_sentinels_are_read_with_master_database_and_their_own_password() -> None:
    address = parse_redis_address(SENTINEL)
    assert (address.mode, address.is_tls) == ("sentinel", False)
    assert address.hosts == (("a", 26380), ("b", 26379), ("::1", 5))
    assert (address.master, address.database) == ("coffee", 2)
    assert (address.username, address.password) == ("till", SECRET)
    assert (address.sentinel_username, address.sentinel_password) == (None, "other")


def test_a_cluster_is_read_with_any_of_its_nodes() -> None:
    address = parse_redis_address("rediss+cluster://:p%40ss%2Fword@a:7000,b")
    assert (address.mode, address.is_tls) == ("cluster", True)
    assert address.hosts == (("a", 7000), ("b", 6379))
    assert (address.username, address.password) == (None, "p@ss/word")


@pytest.mark.parametrize("url", ["redis://a:1/3", "rediss://a", "unix:///run/redis.sock?db=1"])
def test_one_server_is_left_to_its_library(url: str) -> None:
    address = parse_redis_address(url)
    assert address.mode == "single"
    assert not address.fails_over
    assert address.is_tls == url.startswith("rediss")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (f"http://:{SECRET}@a", "must begin with one of redis://"),
        (f"redis://:{SECRET}/x@a", "is no address"),
        (f"redis+sentinel://:{SECRET}@a,b", "must name the master after the sentinels"),
        (f"redis+sentinel://:{SECRET}@a/m/x", "must end in /MASTER or /MASTER/database"),
        (f"redis+sentinel://:{SECRET}@a/m?password={SECRET}", "options that are none (password)"),
        (f"redis+cluster://:{SECRET}@a/1", "must not name a database"),
        (f"redis+cluster://:{SECRET}@a:99999", "names port 99999"),
        (f"redis+cluster://:{SECRET}@", "must list hosts as host:port"),
        (f"redis+cluster://:{SECRET}@a,,b", "must list hosts as host:port"),
        (f"redis+cluster://:{SECRET}@a?x={SECRET}", "options that are none (x)"),
    ],
)
def test_a_bad_address_is_refused_in_a_sentence_without_the_secret(url: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        load(TillSettings, {"COFFEE_RT_REDIS_URL": url})
    assert str(refusal.value).startswith("COFFEE_RT_REDIS_URL: ")
    assert sentence in str(refusal.value)
    assert SECRET not in str(refusal.value)


def test_no_secret_of_any_address_is_shown() -> None:
    settings = load(TillSettings, {"COFFEE_RT_REDIS_URL": SENTINEL})
    shown = masked(settings)["COFFEE_RT_REDIS_URL"]
    assert shown == "redis+sentinel://***@a:26380,b,[::1]:5/coffee/2?sentinel_password=***"
    assert SECRET not in repr(settings)
    assert SECRET not in repr(settings.redis.address)
    assert mask_credentials(f"redis://:{SECRET}@in@h:1 down") == "redis://***@h:1 down"


def test_certificates_without_tls_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    environ = {"COFFEE_RT_REDIS_CA_FILE": str(file)}
    with pytest.raises(SettingsError, match="needs an address with TLS"):
        load(TillSettings, environ)
    environ["COFFEE_RT_REDIS_URL"] = "rediss://a"
    assert load(TillSettings, environ).redis.ca_file == file
    with pytest.raises(SettingsError, match="KEY_FILE: needs the certificate too"):
        load(TillSettings, {**environ, "COFFEE_RT_REDIS_KEY_FILE": str(file)})
    with pytest.raises(SettingsError, match="CA_FILE: is not a file"):
        load(TillSettings, {**environ, "COFFEE_RT_REDIS_CA_FILE": str(tmp_path / "none")})


def test_a_breaker_around_a_log_that_fails_over_opens_shortly() -> None:
    assert RedisSettings().breaker_seconds(30.0) == 30.0
    assert RedisSettings(url="redis+cluster://a").breaker_seconds(30.0) == 2.0
    assert RedisSettings(url=SENTINEL).breaker_seconds(1.0) == 1.0


@pytest.mark.parametrize(
    ("place", "node"),
    [
        ("10.0.0.7:7000", Node("10.0.0.7", 7000)),
        ("::1:7000", Node("::1", 7000)),
        ("node.example:7000", Node("node.example", 7000)),
        (":7000", Node("asked", 7000)),
        ("?:7000", Node("asked", 7000)),
    ],
)
def test_a_redirection_without_a_host_means_the_one_that_answered(place: str, node: Node) -> None:
    assert node_of(place, "asked") == node
