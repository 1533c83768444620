"""`coffee-rt bench`: which measurements to make, the table, the JSON file and the HTML report."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from coffee_rt.bench.fanouts import measure_fanout
from coffee_rt.bench.folds import measure_fold
from coffee_rt.bench.latencies import measure_latencies
from coffee_rt.bench.overload import measure_overload
from coffee_rt.bench.posts import Pace, Progress, measure_posts
from coffee_rt.bench.report import write_html
from coffee_rt.bench.results import Figure, write_json, write_markdown
from coffee_rt.bench.sizing import measure_sizing
from coffee_rt.bench.stack import machine
from coffee_rt.bench.starts import measure_start
from coffee_rt.bench.workers import measure_keyed_worker, measure_worker

EPILOG = """
groups: posts (post_single, post_idempotent, post_limited, post_batch), worker, worker_single,
worker_keyed, fold, fanout_1000, fanout_5000, latency (accept_to_frame, accept_to_stored, bytes, memory),
sizing (cores_per_1000_orders, cores_per_1000_sockets),
overload (overload_single_2x ... overload_batch_10x), start (second_start).

Figures are measured on servers of their own in a throw-away folder, each beside a ceiling in the same run:
on a busy machine believe the ratios. --full takes 20 million stored orders and about 10 GB of disk.
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    seconds: float
    rounds: int
    worker_orders: int
    worker_single_orders: int
    fold_sizes: tuple[int, ...]
    start_orders: int


QUICK = Size(1.5, 1, 150_000, 30_000, (100_000, 300_000), 300_000)
USUAL = Size(4.0, 3, 1_000_000, 200_000, (1_000_000, 3_000_000), 3_000_000)
FULL = Size(8.0, 5, 3_000_000, 500_000, (1_000_000, 5_000_000, 20_000_000), 10_000_000)

Measurement = Callable[[], Awaitable[list[Figure]]]


def groups(size: Size, say: Progress) -> dict[str, Measurement]:
    """Name of a group -> what measures it."""

    def one(figure: Callable[[], Awaitable[Figure]]) -> Measurement:
        async def measure() -> list[Figure]:
            return [await figure()]

        return measure

    return {
        "posts": lambda: measure_posts(Pace(size.seconds, size.rounds), say),
        "worker": one(lambda: measure_worker(say, orders=size.worker_orders, records_per_entry=30)),
        "worker_single": one(
            lambda: measure_worker(say, orders=size.worker_single_orders, records_per_entry=1)
        ),
        "worker_keyed": one(lambda: measure_keyed_worker(say, orders=size.worker_orders)),
        "fold": one(lambda: measure_fold(say, sizes=list(size.fold_sizes))),
        "fanout_1000": one(lambda: measure_fanout(say, sockets=1000, seconds=size.seconds)),
        "fanout_5000": one(lambda: measure_fanout(say, sockets=5000, seconds=size.seconds)),
        "latency": lambda: measure_latencies(say, seconds=2.5 * size.seconds),
        "start": one(lambda: measure_start(say, orders=size.start_orders)),
        "overload": lambda: measure_overload(say, seconds=1.5 * size.seconds),
        "sizing": lambda: measure_sizing(say, seconds=2.5 * size.seconds),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="coffee-rt bench",
        description="Measure every path beside its ceiling and its baselines. Judges nothing.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("only", nargs="*", metavar="GROUP", help="groups to measure; default all")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--full", action="store_true", help="the sizes of the published figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a report with plots here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a table for the docs")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Exit code: 0 when everything asked for was measured, 2 for arguments that can't be used."""
    options = _parser().parse_args(list(arguments))
    console = Console(stderr=True)
    size = FULL if options.full else QUICK if options.quick else USUAL
    known = groups(size, lambda text: console.print(f"  {text}", style="dim"))
    unknown = [name for name in options.only if name not in known]
    if unknown:
        console.print(f"There is no group {unknown[0]}; there are {', '.join(known)}.")
        return 2
    figures: list[Figure] = []
    began = time.monotonic()
    for name in options.only or known:
        console.print(f"[bold]{name}[/bold]")
        figures += uvloop.run(_measure(known[name]))
    spent = time.monotonic() - began
    Console().print(_table(figures, f"coffee-rt bench: {machine()}, {spent:.0f} s"))
    if options.json:
        write_json(figures, options.json)
    if options.html:
        write_html(figures, options.html, machine())
    if options.markdown:
        write_markdown(figures, options.markdown, machine())
    return 0


async def _measure(measurement: Measurement) -> list[Figure]:
    return await asyncio.wait_for(measurement(), 3600)


def _table(figures: Sequence[Figure], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in ("figure", "value", "ceiling", "ratio", "p50 / p99 ms", "goal"):
        table.add_column(
            heading,
            justify="left" if heading in ("figure", "goal") else "right",
            no_wrap=heading == "figure",
        )
    for figure in figures:
        has_latency = figure.p50_ms is not None and figure.p99_ms is not None
        table.add_row(
            figure.name,
            f"{figure.value:,.6g} {figure.unit}",
            "" if figure.ceiling is None else f"{figure.ceiling:,.6g}",
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            f"{figure.p50_ms} / {figure.p99_ms}" if has_latency else "",
            figure.goal,
        )
    return table
