"""What the chart renders for its stores, in every mode."""

from __future__ import annotations

import base64
import json
import subprocess
from typing import Any

import pytest
from store_pods import find, render

VALKEY_MODES = ("bundled", "sentinel", "cluster")
CLIENTS = {
    "order-api",
    "worker",
    "aggregator",
    "fanout",
    "query-api",
    "operator",
    "migrate",
    "audit",
}


def refused(*values: str) -> str:
    """Helm's words when it refuses these values."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        render(*values)
    return str(caught.value.stderr)


def secret(objects: list[dict[str, Any]]) -> dict[str, str]:
    data = find(objects, "Secret", "coffee-rt-stores")["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def variables(objects: list[dict[str, Any]], component: str) -> dict[str, dict[str, Any]]:
    """The variables of a process's container, by name."""
    deployment = find(objects, "Deployment", f"coffee-rt-{component}")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item for item in container["env"]}


def valkey_conf(objects: list[dict[str, Any]]) -> dict[str, str]:
    text = find(objects, "ConfigMap", "coffee-rt-valkey")["data"]["valkey.conf"]
    lines = (line.split(" ", 1) for line in text.splitlines() if line and line[0] != "#")
    return {name: value for name, value in lines}  # noqa: C416 - a later line wins, as in Valkey


@pytest.mark.parametrize("mode", VALKEY_MODES)
def test_no_mode_of_valkey_forgets_or_evicts(mode: str) -> None:
    conf = valkey_conf(render(f"valkey.mode={mode}", "valkey.config.io-threads=2"))
    assert conf["appendonly"] == "yes"
    assert conf["appendfsync"] == "always"
    assert conf["maxmemory-policy"] == "noeviction"
    assert conf["auto-aof-rewrite-min-size"] == "512mb"
    assert conf["maxmemory"] == str(2 * 2**30 * 6 // 10)
    assert conf["io-threads"] == "2"


def test_sentinel_mode_needs_a_replica_for_every_write() -> None:
    objects = render("valkey.mode=sentinel")
    assert valkey_conf(objects)["min-replicas-to-write"] == "1"
    assert variables(objects, "order-api")["COFFEE_RT_ORDER_API_REPLICAS_MIN"]["value"] == "1"
    own = render("valkey.mode=sentinel", "orderApi.settings.replicasMin=2")
    assert variables(own, "order-api")["COFFEE_RT_ORDER_API_REPLICAS_MIN"]["value"] == "2"


def test_a_cluster_with_replicas_needs_one_for_every_write() -> None:
    """Without it a failover doubled orders: their keys were lost with answers that never came."""
    objects = render("valkey.mode=cluster")
    assert valkey_conf(objects)["min-replicas-to-write"] == "1"
    assert variables(objects, "order-api")["COFFEE_RT_ORDER_API_REPLICAS_MIN"]["value"] == "1"
    bare = render("valkey.mode=cluster", "valkey.cluster.replicasPerPrimary=0")
    assert valkey_conf(bare)["min-replicas-to-write"] == "0"
    assert "COFFEE_RT_ORDER_API_REPLICAS_MIN" not in variables(bare, "order-api")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("valkey.config.appendfsync=everysec", "appendfsync"),
        ("valkey.config.maxmemory-policy=allkeys-lru", "maxmemory-policy"),
        ("postgresql.config.synchronous_commit=off", "synchronous_commit"),
        ("postgresql.config.fsync=off", "fsync"),
        ("valkey.mode=master", "mode"),
        ("valkey.replicas=2", "replicas"),
        ("valkey.cluster.primaries=2", "primaries"),
        ("valkey.persistence.size=big", "size"),
        ("valkey.passwordd=x", "passwordd"),
        ("postgresql.archive.secondss=1", "secondss"),
        ("postgresql.restore.targetTime=yesterday", "targetTime"),
        ("valkey.maxmemory=1900Mi", "three quarters"),
        ("valkey.resources.limits.memory=null", "Valkey must know when it is full"),
        ("valkey.mode=external", "give valkey.external.url"),
        ("postgresql.mode=external", "give postgresql.external.url"),
        ("postgresql.restore.base=x", "needs postgresql.archive.enabled"),
        ("tls.databaseClientSecret=x", "needs tls.databaseCaSecret"),
    ],
)
def test_what_would_lose_orders_or_not_work_is_refused(value: str, words: str) -> None:
    assert words in refused(value)


@pytest.mark.parametrize(
    ("secret", "setting"),
    [
        ("redisClientSecret", "settings.redis.certificateFile"),
        ("redisClientSecret", "settings.redis.keyFile"),
        ("redisClientSecret", "settings.extra.COFFEE_RT_REDIS_CERTIFICATE_FILE"),
        ("redisCaSecret", "settings.extra.COFFEE_RT_REDIS_CA_FILE"),
        ("databaseClientSecret", "settings.extra.COFFEE_RT_DATABASE_KEY_FILE"),
        ("databaseCaSecret", "settings.extra.COFFEE_RT_DATABASE_CA_FILE"),
    ],
)
def test_a_certificate_named_twice_is_refused_with_what_to_do(secret: str, setting: str) -> None:
    authority = "tls.databaseCaSecret=authority"
    words = refused(authority, f"tls.{secret}=ours", f"{setting}=/etc/own/file.pem")
    assert f"tls.{secret} and {setting} both say which file it is. Remove {setting}" in words
    assert f"Or leave tls.{secret} empty" in words
    render(authority, f"tls.{secret}=ours", f"{setting}=")
    if secret != "databaseCaSecret":
        render(f"{setting}=/etc/own/file.pem")


def test_more_servers_than_streams_are_refused() -> None:
    words = refused("valkey.mode=cluster", "valkey.cluster.primaries=5")
    assert "valkey.cluster.primaries is 5, and there are 4 streams" in words


def test_poolers_that_could_exhaust_the_server_are_refused() -> None:
    words = refused(
        "postgresql.mode=cloudnative-pg", "postgresql.cloudnativePg.pooler.serverConnectionsMax=150"
    )
    assert "300 in all, and PostgreSQL takes 200" in words


@pytest.mark.parametrize(
    ("mode", "pods", "address"),
    [
        ("bundled", 1, "redis://:{}@coffee-rt-valkey.default.svc:6379/0"),
        ("sentinel", 3, "redis+sentinel://:{}@{}/coffee-rt/0"),
        ("cluster", 6, "redis+cluster://:{}@{}"),
    ],
)
def test_the_address_names_all_pods_with_the_servers_password(
    mode: str, pods: int, address: str
) -> None:
    objects = render(f"valkey.mode={mode}")
    found = secret(objects)
    port = 26379 if mode == "sentinel" else 6379
    hosts = ",".join(
        f"coffee-rt-valkey-{pod}.coffee-rt-valkey-nodes.default.svc:{port}" for pod in range(pods)
    )
    assert found["redis-url"] == address.format(found["valkey-password"], hosts)
    assert find(objects, "StatefulSet", "coffee-rt-valkey")["spec"]["replicas"] == pods
    assert variables(objects, "worker")["COFFEE_RT_REDIS_URL"]["valueFrom"]["secretKeyRef"] == {
        "name": "coffee-rt-stores",
        "key": "redis-url",
    }


def test_passwords_of_yours_are_in_no_object_of_the_chart() -> None:
    objects = render("valkey.existingSecret=mine", "postgresql.existingSecret=mine")
    assert not [o for o in objects if o["metadata"]["name"] == "coffee-rt-stores"]
    env = variables(objects, "worker")
    assert env["VALKEY_PASSWORD"]["valueFrom"]["secretKeyRef"]["name"] == "mine"
    assert "$(VALKEY_PASSWORD)" in env["COFFEE_RT_REDIS_URL"]["value"]
    assert "$(POSTGRESQL_PASSWORD)" in env["COFFEE_RT_DATABASE_URL"]["value"]
    names = list(env)
    assert names.index("VALKEY_PASSWORD") < names.index("COFFEE_RT_REDIS_URL")


def test_addresses_of_external_stores_come_from_their_secrets() -> None:
    objects = render(
        "valkey.mode=external",
        "valkey.external.existingSecret=v",
        "postgresql.mode=external",
        "postgresql.external.existingSecret=p",
    )
    assert not [o for o in objects if o["kind"] == "StatefulSet"]
    env = variables(objects, "query-api")
    replica = env["COFFEE_RT_DATABASE_REPLICA_URL"]["valueFrom"]["secretKeyRef"]
    assert replica == {"name": "p", "key": "database-replica-url", "optional": True}


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_whoever_speaks_to_a_store_is_given_our_certificate(kind: str) -> None:
    objects = render(
        "postgresql.mode=external",
        "postgresql.external.url=postgresql://coffee_rt@db/orders",
        "tls.databaseCaSecret=authority",
        "tls.databaseClientSecret=ours",
        "tls.redisClientSecret=ours-too",
    )
    clients = [
        each["spec"]["template"]["spec"]
        for each in objects
        if each["kind"] == kind and "COFFEE_RT_DATABASE_URL" in str(each)
    ]
    assert clients
    for spec in clients:
        secrets = {each["name"]: each.get("secret") for each in spec["volumes"]}
        (container,) = spec["containers"]
        files = {item["name"]: item.get("value") for item in container["env"]}
        mounted = {each["name"]: each for each in container["volumeMounts"]}
        for store, name in (("database", "ours"), ("redis", "ours-too")):
            folder = f"/etc/coffee-rt/tls/{store}-client"
            assert secrets[f"{store}-client"]["secretName"] == name
            assert mounted[f"{store}-client"]["mountPath"] == folder
            assert mounted[f"{store}-client"]["readOnly"]
            prefix = f"COFFEE_RT_{store.upper()}"
            assert files[f"{prefix}_CERTIFICATE_FILE"] == f"{folder}/tls.crt"
            assert files[f"{prefix}_KEY_FILE"] == f"{folder}/tls.key"


def test_a_pooler_gets_no_named_statements_unless_asked() -> None:
    objects = render("postgresql.mode=cloudnative-pg")
    env = variables(objects, "query-api")
    assert env["COFFEE_RT_DATABASE_STATEMENT_CACHE_SIZE"]["value"] == "0"
    assert "coffee-rt-postgresql-pooler.default.svc" in env["COFFEE_RT_DATABASE_URL"]["value"]
    assert "coffee-rt-postgresql-ro.default.svc" in env["COFFEE_RT_DATABASE_REPLICA_URL"]["value"]
    cluster = find(objects, "Cluster", "coffee-rt-postgresql")
    assert cluster["spec"]["instances"] == 3
    assert cluster["spec"]["postgresql"]["parameters"]["max_connections"] == "200"
    pooler = find(objects, "Pooler", "coffee-rt-postgresql-pooler")
    assert pooler["spec"]["cluster"]["name"] == "coffee-rt-postgresql"


@pytest.mark.parametrize("mode", VALKEY_MODES)
def test_pods_of_stores_are_restricted(mode: str) -> None:
    objects = render(f"valkey.mode={mode}", "valkey.uid=1001", "postgresql.uid=1001")
    for name in ("valkey", "postgresql"):
        spec = find(objects, "StatefulSet", f"coffee-rt-{name}")["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 1001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("mode", VALKEY_MODES)
def test_only_the_processes_and_the_pods_themselves_reach_a_store(mode: str) -> None:
    objects = render(f"valkey.mode={mode}")
    for store in ("valkey", "postgresql"):
        policy = find(objects, "NetworkPolicy", f"coffee-rt-{store}")["spec"]
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        peers = {
            peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for rule in policy["ingress"]
            for peer in rule["from"]
        }
        among = {"valkey"} if store == "valkey" and mode != "bundled" else set()
        assert peers == CLIENTS | among
        assert bool(policy["egress"]) is bool(among)


def test_one_server_has_no_budget_that_would_hold_a_drain_for_ever() -> None:
    for mode in VALKEY_MODES:
        budgets = [
            o
            for o in render(f"valkey.mode={mode}")
            if o["kind"] == "PodDisruptionBudget" and o["metadata"]["name"] == "coffee-rt-valkey"
        ]
        assert len(budgets) == (mode != "bundled")


def test_memory_of_postgresql_follows_its_container() -> None:
    objects = render("postgresql.resources.limits.memory=8Gi", "postgresql.maxConnections=300")
    text = find(objects, "ConfigMap", "coffee-rt-postgresql")["data"]["postgresql.conf"]
    assert "shared_buffers = 2048MB" in text
    assert "max_connections = 300" in text


@pytest.mark.parametrize("mode", VALKEY_MODES)
def test_a_changed_configuration_rolls_the_pods_and_a_new_render_does_not(mode: str) -> None:
    def checksum(*values: str) -> str:
        found = find(render(f"valkey.mode={mode}", *values), "StatefulSet", "coffee-rt-valkey")
        return json.dumps(found["spec"]["template"]["metadata"]["annotations"])

    assert checksum() == checksum()
    assert checksum() != checksum("valkey.config.io-threads=2")


def test_volumes_outlive_the_release() -> None:
    objects = render("postgresql.archive.enabled=true")
    archive = find(objects, "PersistentVolumeClaim", "coffee-rt-postgresql-archive")
    assert archive["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    for name in ("valkey", "postgresql"):
        spec = find(objects, "StatefulSet", f"coffee-rt-{name}")["spec"]
        assert "persistentVolumeClaimRetentionPolicy" not in spec
        assert [claim["metadata"]["name"] for claim in spec["volumeClaimTemplates"]] == ["data"]
