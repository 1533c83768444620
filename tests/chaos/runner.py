"""The command behind scripts/chaos: list, run, smoke, all."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from coffee_rt.bench.stack import machine
from tests.chaos.running import Bench, keep_or_remove
from tests.chaos.scenario import Scenario, load_scenarios
from tests.chaos.verdict import Verdict

DESCRIPTION = """Hurts the real platform and holds what clients were told against what is stored.

Starts embedded servers and all processes, every link through a proxy; a recorder outside posts orders and writes
down every answer; a scenario does its harm; everything is healed; then the notes are compared with the database,
the log, the views and the money. Negative controls must lose orders, or the harness would not see a loss."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "scripts/chaos",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="name every scenario and what it does")
    run = commands.add_parser("run", help="run the named scenarios")
    run.add_argument("names", nargs="+", metavar="NAME")
    smoke = commands.add_parser("smoke", help="run the set for continuous integration")
    everything = commands.add_parser("all", help="run every scenario")
    for command in (run, smoke, everything):
        command.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
        command.add_argument("--seed", type=int, default=1, help="of all randomness  [default: 1]")
        command.add_argument(
            "--keep", action="store_true", help="keep data and logs also when all is well"
        )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    scenarios = load_scenarios()
    if options.command == "list":
        for each in scenarios.values():
            marks = ("smoke " if each.is_smoke else "") + (
                "negative control" if each.is_negative_control else ""
            )
            say(f"{each.name:28} {each.fault}  {marks}".rstrip())
        return 0
    if options.command == "run":
        unknown = sorted(set(options.names) - set(scenarios))
        if unknown:
            say(f"There is no scenario {', '.join(unknown)}. See: scripts/chaos list")
            return 2
        chosen = [scenarios[name] for name in options.names]
    else:
        chosen = [each for each in scenarios.values() if options.command == "all" or each.is_smoke]
    return asyncio.run(run_scenarios(chosen, options))


async def run_scenarios(chosen: list[Scenario], options: argparse.Namespace) -> int:
    # Those of one shape follow each other: they share a platform.
    chosen = sorted(chosen, key=lambda each: (each.is_alone, repr(each.shape)))
    folder = make_folder()
    say(f"{len(chosen)} scenarios, seed {options.seed}, on {machine()}; logs in {folder}")
    bench = Bench(folder, lambda line: say(f"    {line}"), options.seed)
    verdicts: list[Verdict] = []
    began = time.monotonic()
    try:
        for number, each in enumerate(chosen, 1):
            say(f"[{number}/{len(chosen)}] {each.name}: {each.fault}")
            verdict = await bench.run(each)
            verdicts.append(verdict)
            tell(verdict)
    finally:
        await bench.close()
        if options.json and verdicts:
            options.json.write_bytes(msgspec.json.format(encode_verdicts(verdicts), indent=1))
    failed = [verdict.name for verdict in verdicts if not verdict.kept]
    keep_or_remove(folder, is_kept=bool(failed) or options.keep)
    took = time.monotonic() - began
    if failed:
        say(f"{len(failed)} of {len(verdicts)} broke: {', '.join(failed)} ({took:.0f} s).")
        say(f"Logs and notes: {folder}. Again: scripts/chaos run {' '.join(failed)}")
        return 1
    say(f"All {len(verdicts)} kept what was promised ({took:.0f} s).")
    return 0


def make_folder() -> Path:
    """Of data and logs; PostgreSQL enters it as another user when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="coffee-rt-chaos-"))
    folder.chmod(0o755)
    return folder


def encode_verdicts(verdicts: list[Verdict]) -> bytes:
    return msgspec.json.encode({"scenarios": verdicts})


def tell(verdict: Verdict) -> None:
    """One scenario's outcome, on one line and one a problem."""
    mark = "kept" if verdict.kept else "BROKEN"
    if verdict.negative_control and verdict.kept:
        mark = "loss seen, as it must be"
    say(
        f"    {mark}: accepted {verdict.accepted}, stored {verdict.stored}, lost {verdict.lost},"
        f" double {verdict.duplicated}, unknown {verdict.unknown} of which {verdict.resolved}"
        f" resolved; recovered in {verdict.recovery_seconds} s; {verdict.seconds} s"
    )
    for problem in verdict.problems:
        say(f"      - {problem}")
    if verdict.problems and verdict.logs:
        say(f"      logs: {verdict.logs}")


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the command's output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
