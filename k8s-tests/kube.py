"""kubectl for the tests: one cluster, one namespace, answers as Python objects, waits with a limit."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

COMMAND_SECONDS_MAX = 120.0
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


class CommandFailed(AssertionError):
    """A command ended with an error; its text is what the command said."""


def run(
    arguments: Sequence[str],
    *,
    stdin: str | None = None,
    seconds_max: float = COMMAND_SECONDS_MAX,
    environ: dict[str, str] | None = None,
) -> str:
    """Standard output of a command. Raises CommandFailed with its errors."""
    done = subprocess.run(
        arguments,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds_max,
        env=environ,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise CommandFailed(f"{' '.join(arguments[:12])}: exit {done.returncode}\n{said[-4000:]}")
    return done.stdout


def wait_until(
    condition: Callable[[], Any],
    what: str,
    seconds_max: float = 120.0,
    every_seconds: float = 0.5,
    last_words: Callable[[], str] = lambda: "",
) -> Any:
    """The condition's first true value. Raises AssertionError with `what` and the last words."""
    deadline = time.monotonic() + seconds_max
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds_max:.0f} s: {what}\n{last_words()}")
        time.sleep(every_seconds)


@dataclass(frozen=True)
class Pod:
    """What the tests ask of a pod."""

    json: Json

    @property
    def name(self) -> str:
        return str(self.json["metadata"]["name"])

    @property
    def uid(self) -> str:
        return str(self.json["metadata"]["uid"])

    @property
    def node(self) -> str:
        return str(self.json["spec"].get("nodeName", ""))

    @property
    def is_ready(self) -> bool:
        conditions = self.json["status"].get("conditions", [])
        return not self.is_ending and any(
            one["type"] == "Ready" and one["status"] == "True" for one in conditions
        )

    @property
    def is_ending(self) -> bool:
        return "deletionTimestamp" in self.json["metadata"]

    @property
    def restarts(self) -> int:
        return sum(one["restartCount"] for one in self.json["status"].get("containerStatuses", []))


@dataclass(frozen=True)
class Kube:
    """A namespace of a cluster."""

    kubeconfig: Path
    namespace: str

    def kubectl(
        self,
        *arguments: str,
        stdin: str | None = None,
        seconds_max: float = COMMAND_SECONDS_MAX,
    ) -> str:
        return run(
            [
                "kubectl",
                f"--kubeconfig={self.kubeconfig}",
                f"--namespace={self.namespace}",
                *arguments,
            ],
            stdin=stdin,
            seconds_max=seconds_max,
        )

    @property
    def environ(self) -> dict[str, str]:
        """For other programs that speak to this namespace."""
        return os.environ | {"KUBECONFIG": str(self.kubeconfig), "HELM_NAMESPACE": self.namespace}

    def make_namespace(self) -> None:
        """With the strictest Pod Security Standard enforced: whatever breaks it does not start.
        One of this name that an earlier run left behind goes first, with all that is in it."""
        self.kubectl("delete", "namespace", self.namespace, "--ignore-not-found", seconds_max=300)
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": self.namespace, "labels": RESTRICTED},
            }
        )

    def delete_namespace(self) -> None:
        self.kubectl("delete", "namespace", self.namespace, "--ignore-not-found", "--wait=false")

    def apply(self, *objects: Json) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)

    def get(self, kind: str, name: str) -> Json:
        answer: Json = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return answer

    def find(self, kind: str, name: str) -> Json | None:
        """As `get`; None where there is none."""
        text = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def objects(self, kind: str, selector: str = "") -> list[Json]:
        arguments = ["get", kind, "-o", "json"]
        if selector:
            arguments += ["-l", selector]
        items: list[Json] = json.loads(self.kubectl(*arguments))["items"]
        return items

    def pods(self, component: str) -> list[Pod]:
        """Pods of a process that are not on their way out."""
        selector = f"app.kubernetes.io/component={component}"
        pods = [Pod(item) for item in self.objects("pods", selector)]
        return [pod for pod in pods if not pod.is_ending]

    def ready_pods(self, component: str) -> list[Pod]:
        return [pod for pod in self.pods(component) if pod.is_ready]

    def patch(self, kind: str, name: str, change: Json) -> None:
        self.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(change))

    def exec(self, pod: str, *command: str, container: str = "", seconds_max: float = 120.0) -> str:
        where = ["-c", container] if container else []
        return self.kubectl("exec", pod, *where, "--", *command, seconds_max=seconds_max)

    def wait_rolled_out(self, *workloads: str, seconds_max: float = 240.0) -> None:
        for workload in workloads:
            self.kubectl(
                "rollout",
                "status",
                workload,
                f"--timeout={seconds_max:.0f}s",
                seconds_max=seconds_max + 10,
            )

    def describe_trouble(self) -> str:
        """Pods, and the newest warnings: what a person would look at first."""
        pods = self.kubectl("get", "pods", "-o", "wide")
        events = self.kubectl(
            "get", "events", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"
        )
        return f"{pods}\n{_tail(events.splitlines(), 25)}"


def _tail(lines: Iterable[str], count: int) -> str:
    return "\n".join(list(lines)[-count:])
