"""The command behind scripts/simulate."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from functools import partial
from zlib import crc32

from tests.simulation.planted import PLANTED, is_concerned
from tests.simulation.run import Outcome, simulate

CHUNK_SEEDS = 20
PROGRESS_SECONDS = 2.0
CLEAR_LINE = "\r\033[K" if sys.stderr.isatty() else ""

DESCRIPTION = """\
Runs the real cores of order_api, worker, aggregator and fan-out over stores in memory, in virtual time,
while processes die and freeze, answers are lost, servers fail over; then checks what docs/guarantees.md
promises. A seed is a whole run: the same seed is the same run, on every machine."""

EXAMPLES = """\
  scripts/simulate --seeds 2000            what the tests run
  scripts/simulate --seed 45               one seed again, with what happened in it
  scripts/simulate --forever               new seeds until Ctrl-C
  scripts/simulate --planted ack-before-commit --seeds 1000    how soon a bug on purpose is found"""


def main() -> int:
    options = _parse()
    _fix_hashes()
    if options.seed is not None:
        return _replay(options.seed, options.planted)
    first = options.first
    if options.forever and first is None:
        first = int(time.time())
    first = first or 0
    seeds: Iterable[int] = (
        itertools.count(first) if options.forever else range(first, first + options.seeds)
    )
    tally = _Tally(None if options.forever else options.seeds, options.planted)
    try:
        for outcome in _run_all(seeds, options.processes, options.planted):
            tally.add(outcome)
            if options.planted and outcome.failures:
                break
    except KeyboardInterrupt:
        _say("stopped")
    tally.show_summary(is_json=options.json)
    return 1 if tally.failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description=DESCRIPTION,
        epilog="examples:\n" + EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=int, default=200, metavar="N", help="how many (200)")
    which.add_argument("--seed", type=int, metavar="S", help="run this one and print what happened")
    which.add_argument("--forever", action="store_true", help="go on until Ctrl-C")
    parser.add_argument(
        "--first", type=int, metavar="S", help="the first seed (0; with --forever the time)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="run in so many processes (one a CPU)",
    )
    parser.add_argument(
        "--planted", choices=sorted(PLANTED), help="with this bug; stop at the first finding"
    )
    parser.add_argument(
        "--json", action="store_true", help="the summary as JSON on standard output"
    )
    return parser.parse_args()


def _fix_hashes() -> None:
    """Start again with fixed hashes of texts: the order of a set must not differ between two runs."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])


def _replay(seed: int, planted: str | None) -> int:
    with PLANTED[planted]() if planted else nullcontext():
        outcome = simulate(seed, is_traced=True)
    _print("\n".join(outcome.trace))
    _print(
        f"\nseed {seed}: {outcome.seconds:.2f} virtual seconds, {outcome.steps} callbacks, "
        f"fingerprint {outcome.fingerprint:08x}\n{_listed(outcome.happened)}"
    )
    for failure in outcome.failures:
        _print(f"  {failure}")
    _print("FAILED" if outcome.failures else "all promises kept")
    return 1 if outcome.failures else 0


def _run_chunk(seeds: list[int], planted: str | None) -> list[Outcome]:
    with PLANTED[planted]() if planted else nullcontext():
        return [simulate(seed) for seed in seeds if is_concerned(seed, planted)]


def _run_all(seeds: Iterable[int], processes: int, planted: str | None) -> Iterator[Outcome]:
    """Outcomes as they come."""
    chunks = _chunked(seeds)
    if processes < 2:
        for chunk in chunks:
            yield from _run_chunk(chunk, planted)
        return
    # Ctrl-C reaches every process of the terminal; this one ends the others.
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(processes, initializer=ignore) as pool:
        running: set[Future[list[Outcome]]] = set()
        try:
            for chunk in itertools.chain(chunks, itertools.repeat([])):
                if chunk:
                    running.add(pool.submit(_run_chunk, chunk, planted))
                if not running:
                    return
                if not chunk or len(running) > processes:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _chunked(seeds: Iterable[int]) -> Iterator[list[int]]:
    iterator = iter(seeds)
    while chunk := list(itertools.islice(iterator, CHUNK_SEEDS)):
        yield chunk


class _Tally:
    """Counts, shows progress, names each failing seed once with the command that replays it."""

    def __init__(self, total: int | None, planted: str | None) -> None:
        self.failed: list[Outcome] = []
        self._total = total
        self._planted = planted
        self._happened: Counter[str] = Counter()
        self._done = self._steps = 0
        self._fingerprint = 0
        self._began = self._shown_at = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        self._done += 1
        self._steps += outcome.steps
        self._happened += outcome.happened
        # A sum, because outcomes come in any order.
        line = f"{outcome.seed} {outcome.fingerprint} {outcome.failures}"
        self._fingerprint = (self._fingerprint + crc32(line.encode())) & 0xFFFFFFFF
        if outcome.failures:
            self.failed.append(outcome)
            self._show_failure(outcome)
        if time.monotonic() - self._shown_at > PROGRESS_SECONDS:
            self._show_progress()

    def _show_failure(self, outcome: Outcome) -> None:
        planted = f" --planted {self._planted}" if self._planted else ""
        _say(f"seed {outcome.seed} fails:")
        for failure in outcome.failures:
            _say(f"  {failure[:300]}")
        _say(f"  replay: scripts/simulate --seed {outcome.seed}{planted}")

    def _show_progress(self) -> None:
        self._shown_at = time.monotonic()
        rate = self._done / (self._shown_at - self._began)
        share, bar = "", ""
        if self._total:
            share = f" of {self._total}"
            bar = f"[{'#' * (20 * self._done // self._total):.<20}] "
        text = f"{bar}{self._done}{share} seeds, {len(self.failed)} failed, {rate:.0f} a second"
        _say(text, end="" if CLEAR_LINE else "\n")

    def show_summary(self, *, is_json: bool) -> None:
        seconds = time.monotonic() - self._began
        _say("", end="")
        if is_json:
            summary = {
                "seeds": self._done,
                "seconds": round(seconds, 2),
                "callbacks": self._steps,
                "happened": dict(sorted(self._happened.items())),
                "fingerprint": f"{self._fingerprint:08x}",
                "failed": [
                    {"seed": outcome.seed, "failures": outcome.failures} for outcome in self.failed
                ],
            }
            _print(json.dumps(summary))
            return
        _print(
            f"{self._done} seeds in {seconds:.1f} s, {self._steps} callbacks, "
            f"fingerprint {self._fingerprint:08x}\n{_listed(self._happened)}\n"
            + (f"{len(self.failed)} FAILED" if self.failed else "all promises kept")
        )


def _listed(happened: Counter[str]) -> str:
    """What happened, three kinds a line."""
    cells = [f"{count:>8} {kind:<32}" for kind, count in sorted(happened.items())]
    return "\n".join("".join(cells[at : at + 3]).rstrip() for at in range(0, len(cells), 3))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _say(text: str, end: str = "\n") -> None:
    """To the terminal, over the line that shows the progress."""
    sys.stderr.write(f"{CLEAR_LINE}{text}{end}")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
