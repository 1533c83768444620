"""The chart as helm renders it, without a cluster: objects to look at, or the sentence it was refused with."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[2] / "helm" / "coffee-rt"
CI_FILES = tuple(sorted(path.name for path in (CHART / "ci").glob("*-values.yaml")))
PROCESSES = {
    "orderApi": "order-api",
    "worker": "worker",
    "aggregator": "aggregator",
    "fanout": "fanout",
    "queryApi": "query-api",
}
"""Key in values.yaml -> component, of those that scale."""
KUBERNETES_FLOOR = "1.29.0"
HELM_SECONDS_MAX = 60

Object = dict[str, Any]


class Refused(Exception):
    """helm did not render; the text is what it said."""


@dataclass(frozen=True)
class Rendered:
    """The objects of one rendering."""

    objects: Sequence[Object]

    def of(self, *kinds: str) -> list[Object]:
        return [each for each in self.objects if each["kind"] in kinds]

    def one(self, kind: str, component: str) -> Object:
        """The only object of a kind with a component's label."""
        [found] = [each for each in self.of(kind) if component_of(each) == component]
        return found

    def pods(self) -> Iterator[tuple[str, Object]]:
        """(component, pod spec) of whatever makes pods."""
        for each in self.objects:
            if each["kind"] == "Pod":
                yield component_of(each), each["spec"]
            elif each["kind"] in ("Deployment", "StatefulSet", "Job"):
                yield component_of(each), each["spec"]["template"]["spec"]
            elif each["kind"] == "CronJob":
                yield component_of(each), each["spec"]["jobTemplate"]["spec"]["template"]["spec"]

    def pod(self, component: str) -> Object:
        [found] = [spec for name, spec in self.pods() if name == component]
        return found

    def environment(self, component: str) -> dict[str, str]:
        """What a process's container is told: its ConfigMap's and its own variables. Secrets and what the kubelet
        fills in are the text "known-later"."""
        [container] = self.pod(component)["containers"]
        settings: dict[str, str] = {}
        for source in container.get("envFrom", []):
            settings |= self.one("ConfigMap", "settings")["data"]
            assert source["configMapRef"]["name"].endswith("-settings")
        for variable in container["env"]:
            settings[variable["name"]] = variable.get("value", "known-later")
        return settings


@dataclass(frozen=True)
class Chart:
    """Renders with one helm program."""

    helm: str

    def render(
        self,
        values: Mapping[str, Any] | None = None,
        *files: str,
        name: str = "shop",
        apis: Sequence[str] = (),
    ) -> Rendered:
        """`files` are of ci/; `values` go over them. Raises Refused."""
        command = [self.helm, "template", name, str(CHART), "--namespace", "orders"]
        command += ["--kube-version", KUBERNETES_FLOOR]
        command += [f"--values={CHART / 'ci' / file}" for file in files]
        command += [f"--api-versions={api}" for api in apis]
        output = self.run([*command, "--values=-"], values)
        return Rendered([each for each in yaml.safe_load_all(output) if each])

    def refusal(self, values: Mapping[str, Any], *files: str, name: str = "shop") -> str:
        """What helm says to values it must not take."""
        try:
            self.render(values, *files, name=name)
        except Refused as refused:
            return str(refused)
        raise AssertionError("the chart rendered what it must refuse")

    def lint(self, *files: str) -> str:
        command = [self.helm, "lint", str(CHART), "--strict", "--kube-version", KUBERNETES_FLOOR]
        return self.run([*command, *(f"--values={CHART / 'ci' / file}" for file in files)])

    def run(self, command: Sequence[str], values: Mapping[str, Any] | None = None) -> str:
        """The output of a helm command; `values` are its standard input. Raises Refused."""
        done = subprocess.run(
            command,
            input=json.dumps(dict(values or {})),
            capture_output=True,
            text=True,
            check=False,
            timeout=HELM_SECONDS_MAX,
        )
        if done.returncode:
            raise Refused(done.stderr + done.stdout)
        return done.stdout


def component_of(each: Object) -> str:
    return str(each["metadata"].get("labels", {}).get("app.kubernetes.io/component", ""))


def name_of(each: Object) -> str:
    return str(each["metadata"]["name"])


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a label selector of equalities matches."""
    return selector.items() <= labels.items()
