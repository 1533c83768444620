"""Writes an OCI archive of images with one program each.

The images of the cluster's own pods are a static program and nothing else. Writing the archive takes
a hundred lines and as long as copying the bytes; buildah would need a storage folder, a user setup
and several seconds an image, and gives other bytes each time. The same input gives the same bytes
here, and all images share one archive, so a node imports them in one go.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class ProgramImage:
    """An image `reference` whose entry point is the one file in it, /`name`; `user` is a uid."""

    reference: str
    name: str
    program: Path
    user: int = 65532


@dataclass(frozen=True, slots=True)
class _Blob:
    media_type: str
    digest: str
    size: int

    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


def write_archive(images: Sequence[ProgramImage], path: Path) -> None:
    """Writes the archive; references must be complete names such as `localhost/pause:1`."""
    with tarfile.open(path, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        manifests = []
        for image in images:
            layer = _add_blob(archive, "application/vnd.oci.image.layer.v1.tar", _layer(image))
            config = _add_blob(
                archive, "application/vnd.oci.image.config.v1+json", _json(_config(image, layer))
            )
            manifest = {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": config.descriptor(),
                "layers": [layer.descriptor()],
            }
            blob = _add_blob(archive, str(manifest["mediaType"]), _json(manifest))
            manifests.append(
                {
                    **blob.descriptor(),
                    "platform": {"os": "linux", "architecture": architecture()},
                    "annotations": {
                        "org.opencontainers.image.ref.name": image.reference,
                        "io.containerd.image.name": image.reference,
                    },
                }
            )
        _add(archive, "index.json", _json({"schemaVersion": 2, "manifests": manifests}))


def architecture() -> str:
    """This machine's name for processors, in the words of Go and OCI."""
    machine = platform.machine()
    return _MACHINES.get(machine, machine)


def _layer(image: ProgramImage) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        _add(layer, image.name, image.program.read_bytes(), mode=0o755)
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        layer.addfile(folder)
    return buffer.getvalue()


def _config(image: ProgramImage, layer: _Blob) -> dict[str, Any]:
    return {
        "os": "linux",
        "architecture": architecture(),
        "config": {"Entrypoint": [f"/{image.name}"], "User": f"{image.user}:{image.user}"},
        # The layer is not compressed: reading it is then faster than unpacking it.
        "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
    }


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _add_blob(archive: tarfile.TarFile, media_type: str, content: bytes) -> _Blob:
    digest = hashlib.sha256(content).hexdigest()
    name = f"blobs/sha256/{digest}"
    if name not in archive.getnames():
        _add(archive, name, content)
    return _Blob(media_type, f"sha256:{digest}", len(content))


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))
