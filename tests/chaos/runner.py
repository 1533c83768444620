"""The command behind scripts/chaos: list, run, smoke, all, random."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from coffee_rt.bench.stack import machine
from tests.chaos.notes import Load
from tests.chaos.report import commit_of_the_code, report_of
from tests.chaos.running import Bench
from tests.chaos.scenario import Scenario, World, load_scenarios
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
    drawn = commands.add_parser("random", help="faults at random, from a seed that replays them")
    drawn.add_argument("--minutes", type=float, default=2, help="how long  [default: 2]")
    for command in (run, smoke, everything, drawn):
        command.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
        command.add_argument(
            "--report", type=Path, metavar="FILE", help="write the table as a page (Markdown)"
        )
        command.add_argument(
            "--seed",
            type=int,
            default=random.SystemRandom().randrange(1, 1_000_000) if command is drawn else 1,
            help="of all randomness  [default: 1; of random: a new one, printed]",
        )
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
    elif options.command == "random":
        chosen = [random_scenario(options.minutes)]
    else:
        chosen = [each for each in scenarios.values() if options.command == "all" or each.is_smoke]
    return asyncio.run(run_scenarios(chosen, options))


async def run_scenarios(chosen: list[Scenario], options: argparse.Namespace) -> int:
    # Those of one shape follow each other: they share a platform.
    chosen = sorted(chosen, key=lambda each: (each.is_alone, repr(each.shape)))
    folder, commit = make_folder(), commit_of_the_code()
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
            # After each: an hour's run that is cut off leaves what it has found out.
            write(verdicts, options, commit)
    finally:
        await bench.close()
    failed = [verdict.name for verdict in verdicts if not verdict.kept]
    if not failed and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    took = time.monotonic() - began
    if failed:
        say(f"{len(failed)} of {len(verdicts)} broke: {', '.join(failed)} ({took:.0f} s).")
        again = (
            f"random --minutes {options.minutes:g}"
            if options.command == "random"
            else f"run {' '.join(failed)}"
        )
        say(f"Logs and notes: {folder}. Again: scripts/chaos {again} --seed {options.seed}")
        return 1
    say(f"All {len(verdicts)} kept what was promised ({took:.0f} s).")
    return 0


def make_folder() -> Path:
    """Of data and logs; PostgreSQL enters it as another user when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="coffee-rt-chaos-"))
    folder.chmod(0o755)
    return folder


def write(verdicts: list[Verdict], options: argparse.Namespace, commit: str) -> None:
    if options.json and verdicts:
        document = msgspec.json.encode({"seed": options.seed, "scenarios": verdicts})
        options.json.write_bytes(msgspec.json.format(document, indent=1))
    if options.report and verdicts:
        options.report.write_text(report_of(verdicts, options.seed, commit))


def random_scenario(minutes: float) -> Scenario:
    from tests.chaos.scenarios.random_schedule import SHAPE, hurt_at_random

    async def act(world: World) -> None:
        await hurt_at_random(world, minutes * 60)

    fault = f"faults at random, {minutes:g} minutes"
    return Scenario("random", fault, act, False, False, SHAPE, Load(), False)


def tell(verdict: Verdict) -> None:
    """One scenario's outcome, on one line and one a problem."""
    mark = "kept" if verdict.kept else "BROKEN"
    if verdict.negative_control and verdict.kept:
        mark = "loss seen, as it must be"
    say(
        f"    {mark}: accepted {verdict.accepted}, stored {verdict.stored}, lost {verdict.lost},"
        f" double {verdict.duplicated}, unknown {verdict.unknown} of which {verdict.resolved}"
        f" resolved; recovered in {verdict.recovery_seconds} s, the browser"
        f" {verdict.observer_seconds} s later; {verdict.seconds} s"
    )
    for problem in verdict.problems:
        say(f"      - {problem}")
    if verdict.problems and verdict.logs:
        say(f"      logs: {verdict.logs}")


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the command's output


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
