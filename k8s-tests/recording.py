"""The recorder's pod from outside: start it, stop it, and hold what it wrote down against the platform."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kube import Json, wait_until
from release import NAME, Release

SCRIPT = Path(__file__).parent / "recorder" / "recorder.py"
FOLDER = "/tmp/recorder"
POD = "recorder"
SETTLE_SECONDS_MAX = 240.0


@dataclass
class Recorder:
    """A client that is never killed. Use as a context: left, it stops, and `result` is there."""

    release: Release
    orders_per_second: float = 30.0
    sockets: int = 4
    node: str = ""
    """Where its pod has to run; empty: anywhere."""
    run: str = field(default_factory=lambda: f"run-{secrets.token_hex(4)}")
    """Begin of the names of its stores: what else is in the release is not its own."""
    result: Json | None = None

    def __enter__(self) -> Self:
        kube = self.release.kube
        kube.apply(self._script(), self._pod())
        try:
            wait_until(
                lambda: self.accepted() >= 10,
                "the recorder's first orders are accepted",
                last_words=kube.describe_trouble,
            )
        except BaseException:
            # Nobody leaves a context that was never entered, and the next test wants one of its own.
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.stop()
        finally:
            self._remove()

    def _remove(self) -> None:
        self.release.kube.kubectl("delete", "pod", POD, "--grace-period=0", "--force")

    def accepted(self) -> int:
        """Orders accepted so far; 0 while it starts. Fails when it has ended: it never does by itself."""
        pods = self.release.kube.objects("pods", f"app={POD}")
        if pods and pods[0]["status"].get("phase") == "Failed":
            said = self.release.kube.kubectl("logs", POD, "--tail=20")
            raise AssertionError(f"the recorder ended: {said}")
        if not pods or pods[0]["status"].get("phase") != "Running":
            return 0
        text = self._shell(f"cat {FOLDER}/progress.json 2>/dev/null || echo '{{}}'")
        return int(json.loads(text).get("accepted", 0))

    def run_on(self, orders: int) -> None:
        """Return when so many more orders were accepted."""
        until = self.accepted() + orders
        wait_until(
            lambda: self.accepted() >= until,
            f"{orders} more orders accepted",
            seconds_max=180,
            last_words=self.release.kube.describe_trouble,
        )

    def stop(self) -> Json:
        self._shell(f"touch {FOLDER}/stop")
        wait_until(
            lambda: self._shell(f"test -e {FOLDER}/result.json && echo done || true").strip(),
            "the recorder's result",
            seconds_max=300,
            last_words=lambda: self.release.kube.kubectl("logs", POD, "--tail=20"),
        )
        self.result = json.loads(self._shell(f"cat {FOLDER}/result.json"))
        self.check_exactly_once()
        return self.result

    def check_exactly_once(self) -> None:
        """Nothing lost, nothing double, money exact, views equal to the orders, sockets equal to the views."""
        assert self.result is not None
        result, release = self.result, self.release
        assert not result["unresolved"], result
        assert not result["refused"], result
        ids = set(self._shell(f"cat {FOLDER}/ids.txt").split())
        assert len(ids) == result["accepted"] > 0, result
        wait_until(
            lambda: release.stored_orders(self.run) >= len(ids),
            f"{len(ids)} orders stored",
            seconds_max=SETTLE_SECONDS_MAX,
            last_words=release.kube.describe_trouble,
        )
        mine = f"FROM orders WHERE store LIKE '{self.run} %'"
        stored = {row[0] for row in release.sql(f"SELECT order_id {mine}")}
        assert stored == ids, f"lost {len(ids - stored)}, unasked {len(stored - ids)}"
        [[count, money]] = release.sql(f"SELECT count(*), sum(price_minor * quantity) {mine}")
        assert int(count) == len(ids), f"{count} rows of {len(ids)} orders"
        assert int(money) == result["sum_minor"]
        release.command("audit", "hourly")
        release.command("audit", "minutely")
        for socket in result["sockets"]:
            assert socket["orders"] == len(ids), socket
            assert socket["revenue"] == result["sum_minor"], socket
            assert not socket["counts"].get("regressions"), socket

    def _shell(self, command: str) -> str:
        return self.release.kube.exec(POD, "sh", "-c", command)

    def _script(self) -> Json:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": POD},
            "data": {"recorder.py": SCRIPT.read_text()},
        }

    def _pod(self) -> Json:
        environ: dict[str, Any] = {
            "ORDER_API": f"http://{NAME}-order-api",
            "WEBSOCKET": f"ws://{NAME}-fanout:8001",
            "API_KEY": self.release.api_key,
            "RUN": self.run,
            "ORDERS_PER_SECOND": self.orders_per_second,
            "SOCKETS": self.sockets,
            "FOLDER": FOLDER,
            "SECONDS_MAX": 900,
        }
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            # The chart's NetworkPolicies let the ingress controller and whoever carries this label in.
            "metadata": {"name": POD, "labels": {"app": POD, f"{NAME}-client": "true"}},
            "spec": {
                "nodeSelector": {"kubernetes.io/hostname": self.node} if self.node else {},
                "terminationGracePeriodSeconds": 0,
                # What it wrote down is in its container: another would know of nothing.
                "restartPolicy": "Never",
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 10001,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": POD,
                        "image": self.release.images.product,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["sh", "-c"],
                        "args": [f"mkdir -p {FOLDER} && exec python3 /recorder/recorder.py"],
                        "env": [{"name": k, "value": str(v)} for k, v in environ.items()],
                        "volumeMounts": [{"name": "script", "mountPath": "/recorder"}],
                        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                        },
                    }
                ],
                "volumes": [{"name": "script", "configMap": {"name": POD}}],
            },
        }
