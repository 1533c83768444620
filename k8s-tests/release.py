"""An installation of the chart in a namespace of its own, and what tests do with it.

Everything is asked the way an operator would: helm, kubectl, `coffee-rt` commands inside the pods, psql in the bundled
PostgreSQL. Images come from the cluster's own store (scripts/image, images/build).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kube import Json, Kube, run, wait_until

CHART = Path(__file__).parent.parent / "helm" / "coffee-rt"
PROCESSES = ("order-api", "worker", "aggregator", "fanout", "query-api")
NAME = "coffee-rt"
"""Of every release: namespaces tell them apart. The chart's name in it keeps the objects' names short."""
INSTALL_SECONDS_MAX = 420.0


@dataclass(frozen=True)
class Images:
    """What the pods of a test run; of the stores empty: the chart's own."""

    product: str
    postgresql: str = ""
    valkey: str = ""

    def values(self) -> Json:
        values = {"image": image_values(self.product)}
        for store, image in (("postgresql", self.postgresql), ("valkey", self.valkey)):
            if image:
                values[store] = {"image": image_values(image)}
        return values


def image_values(reference: str) -> Json:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"}


@dataclass
class Release:
    """One installation. `values` are those of the last install or upgrade."""

    kube: Kube
    helm: str
    images: Images
    values: Json = field(default_factory=dict)
    files: Sequence[str] = ("minimal-values.yaml",)

    def install(self, values: Mapping[str, Any] | None = None, *files: str) -> None:
        """`helm upgrade --install` with ci/ files and values over them; returns when every pod is ready."""
        self.values = merged(self.images.values(), dict(values or {}))
        self.files = files or self.files
        self._apply("upgrade", "--install", "--create-namespace")
        self.wait_ready()

    def upgrade(self, values: Mapping[str, Any]) -> None:
        """Change some values; returns when the new pods are ready."""
        self.begin_upgrade(values)
        self.wait_ready()

    def begin_upgrade(self, values: Mapping[str, Any]) -> None:
        """Change some values, or install with them; the pods follow."""
        self.values = merged(self.values or self.images.values(), dict(values))
        self._apply("upgrade", "--install")

    def rollback(self) -> None:
        """To the revision before."""
        self._helm("rollback", NAME, seconds_max=INSTALL_SECONDS_MAX)
        self.wait_ready()

    def uninstall(self) -> None:
        self._helm("uninstall", NAME, "--wait", "--timeout=180s", seconds_max=200)

    def test(self) -> str:
        """`helm test`; what its pod said."""
        return self._helm("test", NAME, "--timeout=180s", seconds_max=200)

    def _apply(self, *command: str) -> None:
        arguments = [*command, NAME, str(CHART), "--values=-"]
        arguments += [f"--values={CHART / 'ci' / name}" for name in self.files]
        # The last file wins: standard input has to come after those of ci/.
        arguments.append(arguments.pop(arguments.index("--values=-")))
        self._helm(*arguments, stdin=json.dumps(self.values), seconds_max=INSTALL_SECONDS_MAX)

    def _helm(self, *arguments: str, stdin: str | None = None, seconds_max: float = 120.0) -> str:
        return run(
            [self.helm, *arguments],
            stdin=stdin,
            seconds_max=seconds_max,
            environ=self.kube.environ,
        )

    def wait_ready(self) -> None:
        """All Deployments and StatefulSets of the release are rolled out."""
        selector = f"app.kubernetes.io/instance={NAME}"
        try:
            for kind in ("statefulset", "deployment"):
                names = [item["metadata"]["name"] for item in self.kube.objects(kind, selector)]
                self.kube.wait_rolled_out(
                    *(f"{kind}/{name}" for name in names), seconds_max=INSTALL_SECONDS_MAX
                )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.kube.describe_trouble()}") from None

    def secret(self, name: str) -> dict[str, str]:
        data = self.kube.get("secret", name)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    @property
    def api_key(self) -> str:
        return self.secret(f"{NAME}-api-key")["api-key"]

    def command(self, *arguments: str, component: str = "aggregator") -> str:
        """A `coffee-rt` command inside a running pod, which has the addresses of the stores."""
        pods = wait_until(lambda: self.kube.ready_pods(component), f"a ready {component}")
        return self.kube.exec(pods[0].name, "coffee-rt", *arguments)

    def sql(self, query: str) -> list[list[str]]:
        """Rows of a query in the bundled PostgreSQL, as the server's superuser on its own socket."""
        text = self.kube.exec(
            f"{NAME}-postgresql-0",
            "psql",
            "-X",
            "-q",
            "-A",
            "-t",
            "-F",
            "\t",
            "-c",
            query,
            "coffee_rt",
        )
        return [line.split("\t") for line in text.splitlines()]

    def stored_orders(self, stores: str = "") -> int:
        """Orders in PostgreSQL, of all stores or of those whose names begin so."""
        return int(self.sql(f"SELECT count(*) FROM orders WHERE store LIKE '{stores}%'")[0][0])

    def autoscaler(self, component: str) -> Json:
        return self.kube.get("hpa", f"{NAME}-{component}")


def merged(base: Json, change: Json) -> Json:
    """`change` laid over `base`, dict by dict, as helm does with value files."""
    result = dict(base)
    for key, value in change.items():
        known = result.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            result[key] = merged(known, value)
        else:
            result[key] = value
    return result
