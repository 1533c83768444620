"""The cluster's own certificate authority and the keys of its parts, made at `up`, gone at `down`.

Elliptic curve keys: RSA keys for nine parts would take seconds of the bring-up.
"""

from __future__ import annotations

from dataclasses import dataclass

from bare_cluster import places
from bare_cluster.configs import kubeconfig
from bare_cluster.places import ADMIN_KUBECONFIG, CONTROL, KEYS, NODES
from bare_cluster.steps import run

_DAYS = "3650"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True, slots=True)
class Identity:
    """A part's certificate: who it is to the API server, and the names it serves under."""

    name: str
    subject: str
    served: tuple[str, ...] = ("DNS:localhost",)


def identities() -> tuple[Identity, ...]:
    """All certificates; each name is also the name of its files."""
    service = "kubernetes.default.svc"
    api = (
        *("DNS:kubernetes", "DNS:kubernetes.default", f"DNS:{service}"),
        *(f"DNS:{service}.{places.CLUSTER_DOMAIN}", "DNS:localhost", "IP:127.0.0.1"),
        *(f"IP:{places.API_SERVICE_ADDRESS}", f"IP:{CONTROL.address}"),
    )
    return (
        Identity("apiserver", "/CN=kube-apiserver", api),
        Identity("admin", "/O=system:masters/CN=admin"),
        Identity("controllers", "/CN=system:kube-controller-manager"),
        Identity("scheduler", "/CN=system:kube-scheduler"),
        Identity("proxy", "/CN=system:kube-proxy"),
        Identity("front-proxy", "/CN=front-proxy"),
        *(
            Identity(
                node.name,
                f"/O=system:nodes/CN=system:node:{node.name}",
                (f"DNS:{node.name}", f"IP:{node.address}"),
            )
            for node in NODES
        ),
    )


def ensure_certificates() -> None:
    """Makes the authority, all certificates, the key of service accounts and the kubeconfigs."""
    if ADMIN_KUBECONFIG.exists():  # written last
        return
    KEYS.mkdir(parents=True, exist_ok=True)
    KEYS.chmod(0o700)
    run(
        *("openssl", "req", "-x509", *_KEY, "-days", _DAYS, "-subj", "/CN=coffee-rt-cluster"),
        *("-keyout", KEYS / "ca.key", "-out", KEYS / "ca.crt"),
    )
    for identity in identities():
        _sign(identity)
    run(
        *("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-out", KEYS / "service-accounts.key"),
    )
    run(
        *("openssl", "pkey", "-pubout", "-in", KEYS / "service-accounts.key"),
        *("-out", KEYS / "service-accounts.pub"),
    )
    for name in ("controllers", "scheduler", "proxy", *(node.name for node in NODES)):
        _write_kubeconfig(name)
    _write_kubeconfig("admin")
    (KEYS / "admin.kubeconfig").rename(ADMIN_KUBECONFIG)


def _sign(identity: Identity) -> None:
    run(
        *("openssl", "req", "-x509", *_KEY, "-days", _DAYS, "-subj", identity.subject),
        *("-CA", KEYS / "ca.crt", "-CAkey", KEYS / "ca.key"),
        *("-addext", f"subjectAltName={','.join(identity.served)}"),
        *("-addext", "extendedKeyUsage=serverAuth,clientAuth"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
        *("-keyout", KEYS / f"{identity.name}.key", "-out", KEYS / f"{identity.name}.crt"),
    )


def _write_kubeconfig(name: str) -> None:
    path = KEYS / f"{name}.kubeconfig"
    path.write_text(
        kubeconfig(
            f"https://{CONTROL.address}:{places.API_PORT}",
            *((KEYS / file).read_bytes() for file in ("ca.crt", f"{name}.crt", f"{name}.key")),
        )
    )
    path.chmod(0o600)
