"""The dashboards' JSON, as the chart ships it: `python -m dashboards.grafana [--write]`.

`--write` writes it anew; without it, files that are out of date are named and the exit code is 1.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.grafana import safe_and_fresh

FOLDER = Path(__file__).parents[2] / "helm" / "coffee-rt" / "files" / "dashboards"
DASHBOARDS = {"safe-and-fresh.json": safe_and_fresh.build}


def text_of(name: str) -> str:
    """The JSON of a dashboard, with its panels numbered in their order."""
    board = DASHBOARDS[name]().build()
    for number, panel in enumerate(board.panels or (), 1):
        panel.id_val = number
    return json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def main() -> int:
    parser = ArgumentParser(description="Check (or write) the JSON of the Grafana dashboards.")
    parser.add_argument("--write", action="store_true", help="write them anew")
    is_writing = parser.parse_args().write
    outdated = []
    for name in DASHBOARDS:
        path, text = FOLDER / name, text_of(name)
        if path.exists() and path.read_text() == text:
            continue
        outdated.append(path)
        if is_writing:
            path.write_text(text)
    for path in outdated:
        sys.stdout.write(f"{path.name} {'was written' if is_writing else 'is out of date'}\n")
    return 1 if outdated and not is_writing else 0


if __name__ == "__main__":
    sys.exit(main())
