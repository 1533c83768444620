"""The alert rules of the chart, as files and as one set without annotations, and promtool's unit tests of them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "coffee-rt"
ALERT_FILES = sorted((CHART / "files" / "alerts").glob("*.yaml"))
RUNBOOKS = ROOT / "docs" / "runbooks"

STEP_SECONDS = 15
SHOP = {"namespace": "cafe", "release": "shop"}
QUIET = {"namespace": "cafe", "release": "quiet"}
"""Two releases in one Prometheus: an alert is about one of them."""


def rule_groups() -> list[dict[str, Any]]:
    """The groups of all files."""
    return [group for path in ALERT_FILES for group in yaml.safe_load(path.read_text())["groups"]]


def rules() -> list[dict[str, Any]]:
    """All alerts."""
    return [rule for group in rule_groups() for rule in group["rules"]]


THRESHOLD = re.compile(r"([0-9.]+) # threshold: (\w+)")


def thresholds() -> dict[str, float]:
    """Name -> number, as the expressions have them."""
    return {
        name: float(number) for rule in rules() for number, name in THRESHOLD.findall(rule["expr"])
    }


def with_thresholds(expression: str, chosen: Mapping[str, float]) -> str:
    """The expression with other numbers, as the chart puts them in."""
    return THRESHOLD.sub(
        lambda match: f"{chosen.get(match[2], match[1])} # threshold: {match[2]}", expression
    )


@dataclass
class AlertTest:
    """One promtool test: series of 15 s steps from the epoch on, and what must fire when."""

    alert: str
    series: list[dict[str, Any]] = field(default_factory=list)
    checks: list[dict[str, Any]] = field(default_factory=list)
    step_seconds: int = STEP_SECONDS

    def given(
        self, metric: str, values: str, release: dict[str, str] = SHOP, **labels: object
    ) -> AlertTest:
        """A series of a pod of a release. `values` in promtool's notation."""
        every = {**release, "pod": f"{release['release']}-1", **labels}
        text = ", ".join(f'{name}="{value}"' for name, value in every.items())
        self.series.append({"series": f"{metric}{{{text}}}", "values": values})
        return self

    def fires(self, minutes: float, *labels: dict[str, str]) -> AlertTest:
        """All that fire then, by their labels; none: silence."""
        self.checks.append({"minutes": minutes, "labels": list(labels)})
        return self

    def document(self, rule_file: Path) -> dict[str, Any]:
        """As promtool wants it."""
        expected = [
            {
                "eval_time": f"{round(check['minutes'] * 60)}s",
                "alertname": self.alert,
                "exp_alerts": [{"exp_labels": labels} for labels in check["labels"]],
            }
            for check in self.checks
        ]
        step = f"{self.step_seconds}s"
        return {
            "rule_files": [str(rule_file)],
            "evaluation_interval": step,
            "tests": [{"interval": step, "input_series": self.series, "alert_rule_test": expected}],
        }

    def run(self, folder: Path) -> None:
        """Have promtool judge; its output when it disagrees."""
        bare = folder / "rules.yaml"
        bare.write_text(yaml.safe_dump({"groups": _without_annotations()}))
        test = folder / "test.yaml"
        test.write_text(yaml.safe_dump(self.document(bare)))
        done = promtool("test", "rules", str(test))
        assert done.returncode == 0, done.stdout + done.stderr


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)


def _without_annotations() -> list[dict[str, Any]]:
    """What they say is looked at apart: promtool would want each repeated in each test."""
    return [
        {
            **group,
            "rules": [
                {name: value for name, value in rule.items() if name != "annotations"}
                for rule in group["rules"]
            ],
        }
        for group in rule_groups()
    ]
