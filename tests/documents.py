"""The pages of docs/ that the code itself writes: settings.md and metrics.md.

`python -m tests.documents --write` writes them anew; without it, names those that are out of date and ends
with exit code 1. tests/unit/test_documents.py holds the pages to what the code declares.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser
from importlib import import_module
from itertools import groupby
from pathlib import Path

from coffee_rt.embedded.migrate import MigrateSettings
from coffee_rt.embedded.tables import PROCESSES, settings_class
from coffee_rt.runtime.environment import Setting, describe
from coffee_rt.runtime.metrics import Metric, catalogue
from coffee_rt.runtime.settings import DatabaseSettings, ProcessSettings, RedisSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = ROOT / "services" / "coffee_rt"
_DECLARATION = re.compile(r"\bmetrics\.(counter|gauge|histogram)\(")

_SETTINGS_HEAD = """\
# Settings

Environment variables only. A process prints its settings when it starts, secrets masked, and refuses to
start with a `COFFEE_RT_` name it does not know. Names of another process's own settings are ignored, so one
environment can serve all. Lists are written with commas. `coffee-rt settings PROCESS` prints the same.

This page is written from the code by `python -m tests.documents --write`.
"""
_METRICS_HEAD = """\
# Metrics

Every process serves them at `/metrics` in Prometheus's text format. Each name is listed with its labels and
with what a bad value asks for; [operations](operations.md) begins with those to alarm on.

This page is written from the code by `python -m tests.documents --write`.
"""
_TITLES = {
    "aggregator": "Aggregator",
    "breaker": "Breakers, in every process",
    "channels": "Live messages, in every process that sends or receives them",
    "conservation": "Conservation",
    "fanout": "Fan-out",
    "operator": "Operator",
    "log": "The log, in every process that speaks to it",
    "order": "order_api",
    "query": "query_api",
    "rate": "Rate limits, in every process that has them",
    "ready": "Readiness, in every process",
    "worker": "Worker",
}


def settings_page() -> str:
    """All settings: what all processes share, the servers', then each process's own and other defaults."""
    sections = [
        ("Every process", describe(ProcessSettings)),
        ("Redis or Valkey", describe(RedisSettings)),
        ("PostgreSQL", describe(DatabaseSettings)),
    ]
    shared = {_row(setting) for _, settings in sections for setting in settings}
    for process in PROCESSES:
        own = [each for each in describe(settings_class(process)) if _row(each) not in shared]
        sections.append((process, own))
    own = [each for each in describe(MigrateSettings) if _row(each) not in shared]
    sections.append(("migrate (the command)", own))
    tables = [f"\n## {title}\n\n{_settings_table(settings)}" for title, settings in sections]
    return _SETTINGS_HEAD + "".join(tables)


def _settings_table(settings: list[Setting]) -> str:
    return "| variable | default | meaning |\n|---|---|---|\n" + "".join(map(_row, settings))


def _row(setting: Setting) -> str:
    return f"| `{setting.name}` | {_code(setting.default)} | {_cell(setting.help)} |\n"


def metrics_page() -> str:
    """All metrics, by what they are about."""
    import_metrics()
    sections = []
    for subject, metrics in groupby(catalogue(), key=lambda each: each.name.split("_")[2]):
        rows = "".join(_metric_row(each) for each in metrics)
        head = "| metric | kind | labels | meaning |\n|---|---|---|---|\n"
        sections.append(f"\n## {_TITLES.get(subject, subject)}\n\n{head}{rows}")
    return _METRICS_HEAD + "".join(sections)


def import_metrics() -> None:
    """Import every module that declares metrics."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path.name != "metrics.py" and not _DECLARATION.search(path.read_text()):
            continue
        import_module(".".join(path.relative_to(SOURCE.parent).with_suffix("").parts))


def _metric_row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {_cell(metric.help)} |\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


PAGES = {"settings.md": settings_page, "metrics.md": metrics_page}


def main() -> int:
    parser = ArgumentParser(description="Check (or write) the pages that the code itself writes.")
    parser.add_argument("--write", action="store_true", help="write them anew")
    is_writing = parser.parse_args().write
    outdated = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if path.exists() and path.read_text() == text:
            continue
        outdated.append(name)
        if is_writing:
            path.write_text(text)
    for name in outdated:
        sys.stdout.write(f"docs/{name} {'was written' if is_writing else 'is out of date'}\n")
    return 1 if outdated and not is_writing else 0


if __name__ == "__main__":
    sys.exit(main())
