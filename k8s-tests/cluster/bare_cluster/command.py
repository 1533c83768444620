"""The command line: `build | up | down | status | load | node | kubeconfig`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bare_cluster import api, control_plane, node, places, remains
from bare_cluster.bring_up import ensure_cluster, start_node
from bare_cluster.build import build
from bare_cluster.cache import only_one
from bare_cluster.daemons import running_id
from bare_cluster.machine import check_machine, ensure_packages
from bare_cluster.network import is_member
from bare_cluster.places import ADMIN_KUBECONFIG, CONTROL, NODES, Node
from bare_cluster.steps import ClusterProblem, say, step


def main(arguments: Sequence[str]) -> int:
    """Runs one command; 0 when it did what it says."""
    options = _parser().parse_args(arguments)
    # Ending by an exception, so that a program we wait for (a compiler) does not go on alone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        check_machine()
        return int(options.act(options) or 0)
    except ClusterProblem as problem:
        say(f"\n{problem}")
        return 1
    except KeyboardInterrupt:
        say("\nStopped half-way. `cluster up` goes on, `cluster down` removes what there is.")
        return 130


def _build(_: argparse.Namespace) -> None:
    with step("build"):
        ensure_packages()
        build()
    say(f"Programs are in {places.cache_folder() / 'bin'}.")


def _up(options: argparse.Namespace) -> None:
    with step("up"), only_one("cluster"):
        ensure_packages()
        if remains.is_dead():
            say("A cluster was here whose processes all ended without `down`: it is removed first.")
            remains.remove_all()
        ensure_cluster(NODES[: options.nodes], build())
    say(f"export KUBECONFIG={ADMIN_KUBECONFIG}")
    say(f"Ingress and Gateway answer at http://{NODES[0].address}/ (by the Host of the request).")


def _down(_: argparse.Namespace) -> None:
    with step("down"), only_one("cluster"):
        remains.remove_all()


def _status(_: argparse.Namespace) -> int:
    machines = [(CONTROL, control_plane.DAEMONS), *((one, node.DAEMONS) for one in NODES)]
    conditions = api.node_conditions()
    for machine, daemons in machines:
        if not is_member(machine):
            continue
        states = [
            f"{name} {'runs' if running_id(machine, name) else 'does not run'}" for name in daemons
        ]
        if machine.name in conditions:
            states.append("Ready" if conditions[machine.name] else "not Ready")
        sys.stdout.write(f"{machine.name:8} {machine.address:12} {', '.join(states)}\n")
    if not conditions:
        say("No cluster is up.")
        return 1
    return 0 if all(conditions.values()) else 1


def _load(options: argparse.Namespace) -> None:
    nodes = _running_nodes()
    with (
        step(f"loaded {', '.join(a.name for a in options.archives)}"),
        ThreadPoolExecutor() as threads,
    ):
        for done in [threads.submit(node.import_archives, one, options.archives) for one in nodes]:
            done.result()


def _node(options: argparse.Namespace) -> None:
    one = next(one for one in NODES if one.name == options.name)
    if not is_member(one):
        raise ClusterProblem(f"{one.name} is not part of the cluster. Try: cluster up --nodes 2")
    if options.action == "stop":
        with step(f"stopped {one.name}"), only_one("cluster"):
            node.stop_node(one, cut=options.cut)
        return
    with step(f"started {one.name}"), only_one("cluster"):
        start_node(one, build())


def _kubeconfig(_: argparse.Namespace) -> None:
    if not ADMIN_KUBECONFIG.exists():
        raise ClusterProblem("No cluster is up. Try: k8s-tests/cluster/cluster up")
    sys.stdout.write(f"{ADMIN_KUBECONFIG}\n")


def _running_nodes() -> list[Node]:
    nodes = [one for one in NODES if node.is_running(one)]
    if not nodes:
        raise ClusterProblem("No cluster is up. Try: k8s-tests/cluster/cluster up")
    return nodes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cluster",
        description="A real Kubernetes of two nodes on this Debian machine, for tests and development.",
        epilog=f"Programs are kept in {places.cache_folder()} (COFFEE_RT_CACHE names another folder).",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build_ = commands.add_parser("build", help="make the programs and images (once; then at once)")
    build_.set_defaults(act=_build)

    up = commands.add_parser("up", help="start the cluster, or what of it does not run")
    up.add_argument("--nodes", type=int, choices=range(1, places.NODES_MAX + 1), default=2)
    up.set_defaults(act=_up)

    down = commands.add_parser("down", help="end the cluster and remove all it made, volumes too")
    down.set_defaults(act=_down)

    status = commands.add_parser(
        "status", help="say what runs; 0 when all registered nodes are Ready"
    )
    status.set_defaults(act=_status)

    load = commands.add_parser("load", help="import image archives (OCI or Docker) into every node")
    load.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")
    load.set_defaults(act=_load)

    node_ = commands.add_parser("node", help="stop a node as a power cut does, or start it again")
    node_.add_argument("action", choices=["stop", "start"])
    node_.add_argument("name", choices=[one.name for one in NODES])
    node_.add_argument(
        "--cut", action="store_true", help="pull its cable too: silence, no refusals"
    )
    node_.set_defaults(act=_node)

    kubeconfig = commands.add_parser("kubeconfig", help="print the path of the kubeconfig file")
    kubeconfig.set_defaults(act=_kubeconfig)
    return parser
