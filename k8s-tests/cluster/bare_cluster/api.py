"""Asks the API server, as its administrator: a plain HTTPS request, because kubectl takes 0.2 s a call."""

from __future__ import annotations

import http.client
import json
import ssl
from datetime import datetime
from typing import Any

from bare_cluster.places import ADMIN_KUBECONFIG, API_PORT, CONTROL, KEYS, program
from bare_cluster.steps import run


def get(path: str) -> Any | None:
    """The answer of a GET as JSON (or as text when it is none); None when there is no good one."""
    if not ADMIN_KUBECONFIG.exists():
        return None
    context = ssl.create_default_context(cafile=str(KEYS / "ca.crt"))
    context.load_cert_chain(KEYS / "admin.crt", KEYS / "admin.key")
    connection = http.client.HTTPSConnection(CONTROL.address, API_PORT, timeout=5, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        return None
    return json.loads(body) if body.startswith("{") else body


def is_ready() -> bool:
    return get("/readyz") == "ok"


def node_conditions(since: float = 0.0) -> dict[str, bool]:
    """Whether each registered node is Ready, as it said itself after the instant `since`."""
    answer = get("/api/v1/nodes") or {"items": []}
    return {item["metadata"]["name"]: _is_ready(item["status"], since) for item in answer["items"]}


def _is_ready(status: dict[str, Any], since: float) -> bool:
    return any(
        condition["type"] == "Ready"
        and condition["status"] == "True"
        # Whole seconds: what is said in the second of `since` may be older.
        and datetime.fromisoformat(condition["lastHeartbeatTime"]).timestamp() > since
        for condition in status.get("conditions", [])
    )


def kubectl(*arguments: str, stdin: str | None = None, seconds_max: float = 120.0) -> str:
    """Runs kubectl on this cluster."""
    return run(
        program("kubectl"),
        f"--kubeconfig={ADMIN_KUBECONFIG}",
        *arguments,
        stdin=stdin,
        seconds_max=seconds_max,
    )
