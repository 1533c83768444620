"""Settings of the operator: COFFEE_RT_OPERATOR_<FIELD>, beside those every process has."""

from __future__ import annotations

from typing import ClassVar

from coffee_rt.runtime.settings import DatabaseSettings, ProcessSettings, RedisSettings, own, shared


class OperatorSettings(ProcessSettings):
    """Everything the operator can be told. How it reaches Kubernetes is not: the service account of its
    pod, else KUBECONFIG."""

    process: ClassVar[str] = "operator"

    http_port: int = shared(8006, ge=0, le=65535, help="Port to listen on; 0: any free one.")
    redis: RedisSettings = RedisSettings()
    database: DatabaseSettings = DatabaseSettings()

    watch_namespace: str = own(
        "",
        pattern=r"^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?$",
        help="Kubernetes namespace whose objects are tended; empty: the pod's own, or that of KUBECONFIG.",
    )
    lease_name: str = own(
        "coffee-rt-operator",
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$",
        help="Lease by which several operators of a namespace choose the one that works.",
    )
    lease_seconds: int = own(
        12,
        ge=3,
        le=300,
        help="Silence of the working operator after which another takes over. It stops by itself after two "
        "thirds of that without the API server, so longer means fewer stops and a later successor.",
    )
    tend_seconds: float = own(
        5.0,
        gt=0,
        le=300,
        help="Seconds between looks at backlog, sessions and autoscalers. Longer: floors follow later.",
    )
    status_seconds: float = own(
        15.0,
        gt=0,
        le=3600,
        help="Least seconds between two updates of a status of which only numbers changed.",
    )
    care_seconds: float = own(
        300.0,
        gt=0,
        le=86_400,
        help="Seconds between turns of partitions and retention. What is detached in one turn goes in a "
        "later one.",
    )
    backoff_seconds_max: float = own(
        15.0,
        gt=0,
        help="Longest wait before Kubernetes, PostgreSQL or Redis is tried again after failures.",
    )
