"""A real Prometheus that scrapes the processes of a running platform, and what it answers."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import psutil
import yaml

from coffee_rt.embedded.plan import PROCESSES
from tests.acceptance.running import Platform
from tests.monitoring.rules import ROOT, rule_groups, with_thresholds

NAMESPACE, RELEASE = "cafe", "shop"
MONITORING_PAGE = ROOT / "docs" / "operations" / "monitoring.md"
START_SECONDS_MAX = 30
Sample = tuple[dict[str, str], float]


class Prometheus:
    """Scrapes every two seconds, with the chart's rules, none of which waits (`for`)."""

    def __init__(
        self, folder: Path, targets: Mapping[str, int], thresholds: Mapping[str, float]
    ) -> None:
        folder.mkdir()
        (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": _hasty(thresholds)}))
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(_configuration(targets)))
        self.port = _free_port()
        self._log = (folder / "log").open("wb+")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self.port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def wait_ready(self) -> None:
        wait_until(lambda: self._is_ready(), START_SECONDS_MAX, self.log)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self.log()
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def query(self, expression: str) -> list[Sample]:
        """An instant query: labels and values, without those that are no number."""
        data = self._get("query", query=expression)
        samples = [(dict(one["metric"]), float(one["value"][1])) for one in data["result"]]
        return [(labels, value) for labels, value in samples if not math.isnan(value)]

    def firing(self) -> dict[str, list[dict[str, str]]]:
        """Alert -> the labels it fires with."""
        found: dict[str, list[dict[str, str]]] = {}
        for alert in self._get("alerts")["alerts"]:
            found.setdefault(alert["labels"]["alertname"], []).append(alert["labels"])
        return found

    def annotations(self) -> list[dict[str, str]]:
        """Of all that fire."""
        return [alert["annotations"] for alert in self._get("alerts")["alerts"]]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def values_of(self, label: str, selector: str) -> list[str]:
        """What label_values(selector, label) of a dashboard offers."""
        return list(self._get(f"label/{label}/values", **{"match[]": selector}))

    def wait_firing(self, alert: str, seconds: float = 30, **labels: str) -> list[dict[str, str]]:
        """Until an alert fires, with these labels among its own."""

        def found() -> list[dict[str, str]]:
            return [one for one in self.firing().get(alert, []) if labels.items() <= one.items()]

        wait_until(found, seconds, lambda: f"{alert} {labels} not in {self.firing()}")
        return found()

    def wait_silent(self, alert: str, seconds: float = 30) -> None:
        wait_until(lambda: alert not in self.firing(), seconds, lambda: str(self.firing()))

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._log.close()

    def _get(self, path: str, **parameters: str) -> Any:
        address = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with urlopen(address, timeout=10) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None


def wait_until(condition: Callable[[], Any], seconds: float, explain: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)


def metrics_ports(platform: Platform) -> dict[str, int]:
    """Process -> the port where it serves its metrics; fanout listens on another too."""
    return {process: _metrics_port(platform.pid_of(process)) for process in PROCESSES}


def _metrics_port(pid: int) -> int:
    for connection in psutil.Process(pid).net_connections("tcp"):
        if connection.status != psutil.CONN_LISTEN:
            continue
        try:
            with urlopen(f"http://127.0.0.1:{connection.laddr.port}/metrics", timeout=5) as answer:
                if b"coffee_rt_ready_ratio" in answer.read():
                    return int(connection.laddr.port)
        except OSError:
            continue
    raise AssertionError(f"process {pid} serves no metrics")


def _hasty(thresholds: Mapping[str, float]) -> list[dict[str, Any]]:
    groups = rule_groups()
    for group in groups:
        group["interval"] = "1s"
        for rule in group["rules"]:
            rule["for"] = "0s"
            rule["expr"] = with_thresholds(rule["expr"], thresholds)
    return groups


def _configuration(targets: Mapping[str, int]) -> dict[str, Any]:
    """The documented scrape configuration; only who finds the targets is another.

    Each target has what Kubernetes would have told of its pod. A pod of somebody else is among them.
    """
    text = MONITORING_PAGE.read_text()
    [block] = re.findall(r"^```yaml\n(scrape_configs:\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    configuration: dict[str, Any] = yaml.safe_load(block)
    [job] = configuration["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    job["static_configs"] = [
        _target(process, port, "coffee-rt") for process, port in targets.items()
    ] + [_target("stranger", 9, "another")]
    return {
        **configuration,
        "global": {
            "scrape_interval": "2s",
            "scrape_timeout": "2s",
            "evaluation_interval": "1s",
        },
        "rule_files": ["rules.yaml"],
    }


def _target(process: str, port: int, application: str) -> dict[str, Any]:
    labels = "__meta_kubernetes_pod_label_app_kubernetes_io"
    return {
        "targets": [f"127.0.0.1:{port}"],
        "labels": {
            "__meta_kubernetes_namespace": NAMESPACE,
            "__meta_kubernetes_pod_name": f"{RELEASE}-{process}-0",
            "__meta_kubernetes_pod_container_port_name": "http",
            f"{labels}_part_of": application,
            f"{labels}_instance": RELEASE,
            f"{labels}_component": process,
        },
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
