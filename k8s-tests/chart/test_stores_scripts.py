"""The scripts of the chart's stores, on real servers: first starts, restarts, lost volumes, failovers, restores."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from store_pods import NOBODY, PostgresPod, Processes, ValkeyPods, wait_until

pytestmark = pytest.mark.timeout(400)

ELECTION_SECONDS_MAX = 180
"""A vote that comes to nothing is repeated after twice FAILOVER_SECONDS."""


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.end()


@pytest.fixture
def postgres(processes: Processes) -> PostgresPod:
    return PostgresPod(processes)


def test_a_first_start_makes_a_database_that_the_processes_can_use(postgres: PostgresPod) -> None:
    done = postgres.prepare()
    assert done.returncode == 0, done.stdout + done.stderr
    postgres.start()
    assert postgres.psql("SELECT current_user", url=postgres.url).strip() == "coffee_rt"
    postgres.psql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)", url=postgres.url)
    assert postgres.psql("SHOW synchronous_commit").strip() == "on"
    assert postgres.psql("SHOW data_checksums").strip() == "on"
    postgres.stop(signal.SIGINT)

    assert "made" not in postgres.prepare().stdout
    postgres.start()
    assert postgres.psql("SELECT n FROM kept", url=postgres.url).strip() == "7"


def test_a_half_made_data_folder_is_made_anew(postgres: PostgresPod) -> None:
    half = postgres.volume / "pgdata.new"
    (half / "base").mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    if os.geteuid() == 0:
        for path in (half, half / "base", half / "PG_VERSION"):
            os.chown(path, NOBODY, NOBODY)
    done = postgres.prepare()
    assert done.returncode == 0, done.stdout + done.stderr
    assert not half.exists()
    postgres.start()


def test_a_folder_that_is_no_database_is_left_alone(postgres: PostgresPod) -> None:
    (postgres.volume / "pgdata").mkdir()
    (postgres.volume / "pgdata" / "mine.txt").write_text("mine")
    if os.geteuid() == 0:
        os.chown(postgres.volume / "pgdata", NOBODY, NOBODY)
    done = postgres.prepare()
    assert done.returncode == 1
    assert "no PostgreSQL data folder" in done.stdout
    assert (postgres.volume / "pgdata" / "mine.txt").read_text() == "mine"


def test_data_of_another_major_version_is_refused(postgres: PostgresPod) -> None:
    assert postgres.prepare().returncode == 0
    (postgres.volume / "pgdata" / "PG_VERSION").write_text("17\n")
    done = postgres.prepare()
    assert done.returncode == 1
    assert "PostgreSQL 17 and this image brings 18" in done.stdout


def test_a_new_password_counts_from_the_next_start_even_after_a_crash(
    postgres: PostgresPod,
) -> None:
    assert postgres.prepare().returncode == 0
    postgres.start()
    first = postgres.url
    postgres.psql("CREATE TABLE kept AS SELECT 7 AS n", url=first)
    # Everything at once and nothing written down, as when a pod is killed.
    postgres.stop(signal.SIGQUIT)
    postgres.set_password("second2")
    done = postgres.prepare()
    assert done.returncode == 0, done.stdout + done.stderr
    postgres.start()
    assert postgres.psql("SELECT n FROM kept", url=postgres.url).strip() == "7"
    assert "password authentication failed" in postgres.psql("SELECT 1", url=first)


def test_a_password_that_breaks_addresses_is_refused(postgres: PostgresPod) -> None:
    postgres.set_password("a'b@c")
    done = postgres.prepare()
    assert done.returncode == 1
    assert "letters and digits" in done.stdout


def test_any_moment_since_a_base_backup_comes_back_on_a_new_timeline(postgres: PostgresPod) -> None:
    assert postgres.prepare().returncode == 0
    postgres.start()
    postgres.psql("CREATE TABLE orders AS SELECT 1 AS n", url=postgres.url)
    backup = postgres.script("postgresql-backup.sh")
    assert backup.returncode == 0, backup.stdout + backup.stderr
    (base,) = (path.name for path in (postgres.archive / "base").iterdir())
    postgres.psql("INSERT INTO orders VALUES (2)", url=postgres.url)
    moment = postgres.psql('SELECT to_char(now(), \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\')').strip()
    postgres.psql("INSERT INTO orders VALUES (3)", url=postgres.url)
    postgres.psql("SELECT pg_switch_wal()")
    postgres.stop(signal.SIGINT)

    for target, expected, timeline in ((moment, "1\n2", "2"), ("", "1\n2\n3", "2")):
        # A second restore begins from the same base; without a target it follows the archive's newest timeline.
        if not target:
            for path in (postgres.archive / "wal").glob("00000002*"):
                path.unlink()
        restored = postgres.prepare(RESTORE_BASE=base, RESTORE_TARGET_TIME=target)
        assert restored.returncode == 0, restored.stdout + restored.stderr
        postgres.start()
        assert (
            postgres.psql("SELECT n FROM orders ORDER BY n", url=postgres.url).strip() == expected
        )
        found = postgres.psql("SELECT timeline_id FROM pg_control_checkpoint()").strip()
        assert found == timeline
        postgres.stop(signal.SIGINT)

        again = postgres.prepare(RESTORE_BASE=base, RESTORE_TARGET_TIME=target)
        assert again.returncode == 0
        assert "put" not in again.stdout
    assert len(list(postgres.volume.glob("pgdata.before-*"))) == 2


def test_old_backups_go_with_the_log_that_only_they_needed(postgres: PostgresPod) -> None:
    assert postgres.prepare().returncode == 0
    postgres.start()
    assert postgres.script("postgresql-backup.sh").returncode == 0
    first = {path.name for path in (postgres.archive / "base").iterdir()}
    postgres.psql("CREATE TABLE orders AS SELECT 1 AS n; SELECT pg_switch_wal()", url=postgres.url)
    wait_until(
        "another second",
        5,
        lambda: (
            postgres.script("postgresql-backup.sh", "1").returncode == 0
            and not first & {path.name for path in (postgres.archive / "base").iterdir()}
        ),
    )
    (kept,) = (postgres.archive / "base").iterdir()
    label = (kept / "backup_label").read_text()
    segments = sorted(p.name for p in (postgres.archive / "wal").iterdir() if len(p.name) == 24)
    assert segments[0] in label


def test_a_missing_backup_is_named_and_the_data_stays(postgres: PostgresPod) -> None:
    assert postgres.prepare().returncode == 0
    done = postgres.prepare(RESTORE_BASE="2026-01-01T00-00-00Z")
    assert done.returncode == 1
    assert "no base backup 2026-01-01T00-00-00Z" in done.stdout
    assert (postgres.volume / "pgdata" / "PG_VERSION").exists()


@pytest.fixture
def sentinels(processes: Processes) -> ValkeyPods:
    return ValkeyPods(processes, "sentinel", 3)


def primary_of(pods: ValkeyPods) -> int:
    """The pod that says it is the primary; -1 while there isn't exactly one."""
    found = [pod for pod in pods.servers if pods.ask(pod, "ROLE").startswith("master")]
    return found[0] if len(found) == 1 else -1


def knows_replicas(pods: ValkeyPods, pod: int) -> bool:
    """Whether the pod's sentinel has heard of both replicas."""
    known = pods.ask(pod, "SENTINEL", "REPLICAS", "coffee-rt", port=26379)
    return known.splitlines().count("runid") == 2


def wait_until_known(pods: ValkeyPods) -> None:
    """They ask the primary for its replicas every ten seconds; one they don't know can't take over."""
    wait_until(
        "the sentinels know all", 60, lambda: all(knows_replicas(pods, p) for p in (0, 1, 2))
    )


def start_three(pods: ValkeyPods) -> int:
    for pod in (2, 1, 0):
        pods.start(pod)
    wait_ready(pods)
    return primary_of(pods)


def wait_ready(pods: ValkeyPods) -> None:
    try:
        wait_until(
            "every pod is ready", 60, lambda: all(pods.is_ready(pod) for pod in pods.servers)
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\n{pods.logs()}") from None


def test_sentinel_pods_started_together_agree_on_one_primary(sentinels: ValkeyPods) -> None:
    assert start_three(sentinels) == 0
    assert sentinels.ask(0, "SET", "k", "1") == "OK"
    wait_until("replicas have it", 10, lambda: sentinels.ask(2, "GET", "k") == "1")
    assert sentinels.ask(0, "CONFIG", "GET", "min-replicas-to-write").split()[1] == "1"


@pytest.mark.full
def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(sentinels: ValkeyPods) -> None:
    start_three(sentinels)
    assert sentinels.ask(0, "SET", "k", "1") == "OK"
    assert sentinels.ask(0, "WAIT", "2", "4000") == "2"
    wait_until_known(sentinels)
    sentinels.kill(0)
    wait_until(
        "another is the primary", ELECTION_SECONDS_MAX, lambda: primary_of(sentinels) in (1, 2)
    )
    now = primary_of(sentinels)
    wait_until("it takes orders", 90, lambda: sentinels.ask(now, "SET", "k", "2") == "OK")
    sentinels.start(0)
    wait_ready(sentinels)
    assert primary_of(sentinels) == now
    assert sentinels.ask(0, "GET", "k") == "2"


@pytest.mark.full
def test_all_pods_killed_at_once_come_back_with_everything(sentinels: ValkeyPods) -> None:
    start_three(sentinels)
    wait_until_known(sentinels)
    sentinels.kill(0)
    wait_until(
        "another is the primary", ELECTION_SECONDS_MAX, lambda: primary_of(sentinels) in (1, 2)
    )
    now = primary_of(sentinels)
    sentinels.start(0)
    wait_ready(sentinels)
    wait_until("both follow it", 60, lambda: sentinels.ask(now, "WAIT", "2", "1000") == "2")
    assert sentinels.ask(now, "SET", "k", "2") == "OK"
    assert sentinels.ask(now, "WAIT", "2", "4000") == "2"
    for pod in (0, 1, 2):
        sentinels.kill(pod)
    start_three(sentinels)
    wait_until("there is one primary", 60, lambda: primary_of(sentinels) >= 0)
    wait_ready(sentinels)
    assert [sentinels.ask(pod, "GET", "k") for pod in (0, 1, 2)] == ["2", "2", "2"]


@pytest.mark.full
def test_a_primary_that_lost_its_volume_never_empties_its_replicas(sentinels: ValkeyPods) -> None:
    start_three(sentinels)
    assert sentinels.ask(0, "SET", "k", "1") == "OK"
    assert sentinels.ask(0, "WAIT", "2", "4000") == "2"
    wait_until_known(sentinels)
    sentinels.kill(0)
    sentinels.lose_volume(0)
    # Back before the sentinels have noticed anything.
    sentinels.start(0)
    wait_until(
        "another is the primary", ELECTION_SECONDS_MAX, lambda: primary_of(sentinels) in (1, 2)
    )
    wait_ready(sentinels)
    assert [sentinels.ask(pod, "GET", "k") for pod in (0, 1, 2)] == ["1", "1", "1"]


@pytest.mark.full
def test_a_pod_that_sees_no_majority_waits(sentinels: ValkeyPods) -> None:
    start_three(sentinels)
    for pod in (0, 1, 2):
        sentinels.kill(pod)
    sentinels.start(0)
    wait_until(
        "it says what it waits for",
        30,
        lambda: "1 of 3 sentinels answer" in sentinels.processes.log("pod-0-valkey-start.sh"),
    )
    assert sentinels.ask(0, "PING") == ""
    sentinels.start(1)
    wait_until("two are a majority", 60, lambda: primary_of(sentinels) in (0, 1))


def test_a_stopping_primary_hands_over_with_everything(sentinels: ValkeyPods) -> None:
    start_three(sentinels)
    wait_until_known(sentinels)
    assert sentinels.ask(0, "SET", "k", "1") == "OK"
    left = sentinels.script(0, "valkey-leave.sh")
    assert left.returncode == 0, left.stdout + left.stderr
    sentinels.kill(0)
    wait_until("another is the primary", 10, lambda: primary_of(sentinels) in (1, 2))
    now = primary_of(sentinels)
    assert sentinels.ask(now, "GET", "k") == "1"
    wait_until("it takes orders", 10, lambda: sentinels.ask(now, "SET", "k", "2") == "OK")


def test_a_bundled_server_becomes_the_first_primary_of_sentinel_mode(processes: Processes) -> None:
    pods = ValkeyPods(processes, "bundled", 3)
    pods.start(0)
    wait_ready(pods)
    assert pods.ask(0, "SET", "k", "1") == "OK"
    pods.kill(0)
    pods.switch_mode("sentinel")
    assert start_three(pods) == 0
    assert [pods.ask(pod, "GET", "k") for pod in (0, 1, 2)] == ["1", "1", "1"]


def test_a_copy_of_the_log_is_taken_while_it_runs_and_put_back(processes: Processes) -> None:
    pods = ValkeyPods(processes, "bundled", 1)
    pods.start(0)
    wait_ready(pods)
    assert pods.ask(0, "SET", "k", "1") == "OK"
    copy = processes.make_folder("copy") / "log.tar"
    script = pods.config / "valkey-backup.sh"
    backup = processes.run("sh", "-c", f"sh {script} >{copy}", environ=pods.environ(0))
    assert backup.returncode == 0, backup.stderr
    assert pods.ask(0, "CONFIG", "GET", "auto-aof-rewrite-percentage").split()[1] == "100"
    assert pods.ask(0, "SET", "k", "2") == "OK"
    script = pods.config / "valkey-restore.sh"
    restore = processes.run("sh", "-c", f"sh {script} <{copy}", environ=pods.environ(0))
    assert restore.returncode == 0, restore.stdout + restore.stderr
    pods.kill(0)
    pods.start(0)
    wait_ready(pods)
    assert pods.ask(0, "GET", "k") == "1"
    assert len(list(pods.volume(0).glob("appendonlydir.before-*"))) == 1


@pytest.fixture
def cluster(processes: Processes) -> ValkeyPods:
    return ValkeyPods(processes, "cluster", 6, "valkey.cluster.nodeTimeoutSeconds=2")


def start_cluster(pods: ValkeyPods) -> None:
    for pod in range(len(pods.hosts)):
        pods.start(pod)
    wait_ready(pods)
    wait_until(
        "every primary has a replica",
        60,
        lambda: sorted(len(replicas_of(pods, pod)) for pod in owners(pods)) == [1, 1, 1],
    )
    # Known to the cluster is not yet in step: before that a primary takes no writes.
    wait_until(
        "every primary counts its replica",
        60,
        lambda: all(
            "min_slaves_good_slaves:1" in pods.ask(pod, "INFO", "replication")
            for pod in owners(pods)
        ),
    )


def owners(pods: ValkeyPods) -> list[int]:
    """Pods that have slots, by their own word."""
    found = []
    for pod in pods.servers:
        mine = [line for line in pods.ask(pod, "CLUSTER", "NODES").splitlines() if "myself" in line]
        if mine and "master" in mine[0] and len(mine[0].split()) > 8:
            found.append(pod)
    return found


def replicas_of(pods: ValkeyPods, pod: int) -> list[str]:
    mine = pods.ask(pod, "CLUSTER", "MYID")
    seen = pods.ask(pod, "CLUSTER", "NODES").splitlines()
    return [line for line in seen if f"slave {mine} " in line and "fail" not in line]


@pytest.mark.full
def test_a_cluster_forms_itself_with_its_slots_in_equal_shares(cluster: ValkeyPods) -> None:
    start_cluster(cluster)
    assert owners(cluster) == [0, 1, 2]
    state = cluster.ask(5, "CLUSTER", "INFO")
    assert "cluster_slots_ok:16384" in state
    slots = [
        line.split()[8]
        for line in cluster.ask(0, "CLUSTER", "NODES").splitlines()
        if "master" in line
    ]
    assert sorted(slots) == ["0-5460", "10922-16383", "5461-10921"]


@pytest.mark.full
def test_a_lost_primary_of_a_cluster_is_replaced_and_its_empty_pod_follows(
    cluster: ValkeyPods,
) -> None:
    start_cluster(cluster)
    key = "{b}k"  # slot 3300, of pod 0
    assert cluster.ask(0, "SET", key, "1") == "OK"
    assert cluster.ask(0, "WAIT", "1", "4000") == "1"
    cluster.kill(0)
    cluster.lose_volume(0)
    wait_until("a replica takes over", 60, lambda: owners(cluster) == [1, 2, 3])
    assert cluster.ask(3, "GET", key) == "1"
    cluster.start(0)
    wait_ready(cluster)
    wait_until("it follows", 60, lambda: len(replicas_of(cluster, 3)) == 1)
    wait_until(
        "its old self is forgotten",
        60,
        lambda: all(len(cluster.ask(p, "CLUSTER", "NODES").splitlines()) == 6 for p in range(6)),
    )


@pytest.mark.full
def test_a_whole_cluster_restarted_at_other_addresses_finds_itself(cluster: ValkeyPods) -> None:
    start_cluster(cluster)
    assert cluster.ask(0, "SET", "{b}k", "1") == "OK"
    for pod in range(6):
        cluster.kill(pod)
    # As after a power cut: each pod comes back under an address that nobody knows.
    net, _, _ = cluster.hosts[0].rpartition(".")
    cluster.hosts = [f"{net}.{101 + pod}" for pod in range(6)]
    start_cluster(cluster)
    assert "cluster_slots_ok:16384" in cluster.ask(4, "CLUSTER", "INFO")
    assert any(cluster.ask(pod, "GET", "{b}k") == "1" for pod in owners(cluster))


def test_a_stopping_primary_of_a_cluster_hands_over(cluster: ValkeyPods) -> None:
    start_cluster(cluster)
    assert cluster.ask(0, "SET", "{b}k", "1") == "OK"
    left = cluster.script(0, "valkey-leave.sh")
    assert left.returncode == 0, left.stdout + left.stderr
    assert owners(cluster) == [1, 2, 3]
    assert cluster.ask(3, "GET", "{b}k") == "1"
