"""Keeps what was built, under the hash of what it was built from.

A product named N lives at `<kind>/N-<key>` and never changes; `bin/N` is a link to the present one.
Products are made under another name and renamed, so a killed build leaves no half product.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bare_cluster.places import cache_folder
from bare_cluster.steps import say, step

_KEY_LENGTH = 16


def key_of(parts: Iterable[str | bytes | Path]) -> str:
    """The hash of texts and of files (names and contents) in the given order.

    Lengths are hashed too, so that moving text from one part to the next gives another key.
    """
    digest = hashlib.sha256()
    for part in parts:
        name = part.name if isinstance(part, Path) else ""
        if isinstance(part, Path):
            content = part.read_bytes()
        else:
            content = part if isinstance(part, bytes) else part.encode()
        digest.update(f"{len(name)} {name} {len(content)} ".encode() + content)
    return digest.hexdigest()[:_KEY_LENGTH]


def ensure_product(kind: str, name: str, key: str, make: Callable[[Path], None]) -> Path:
    """The path of the product, made by `make(staged path)` when this key is new.

    Older products of the same name are removed: they would fill the disk, and a key that comes
    back is built again.
    """
    folder = cache_folder() / kind
    path = folder / f"{name}-{key}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f".{name}.new"
    _remove(staged)
    with step(f"built {name}"):
        make(staged)
        staged.rename(path)
    for old in folder.glob(f"{name}-{'?' * _KEY_LENGTH}"):
        if old != path:
            _remove(old)
    return path


def link_program(name: str, target: Path) -> None:
    """Lets `bin/<name>` be the target, at once for everybody who starts it."""
    link = cache_folder() / "bin" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    staged = link.with_name(f".{name}.new")
    staged.unlink(missing_ok=True)
    staged.symlink_to(os.path.relpath(target, link.parent))
    staged.rename(link)


@contextmanager
def only_one(what: str) -> Iterator[None]:
    """Waits until nobody else works on it; the kernel frees the lock when we end, however we end."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{what}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Somebody else works on the {what}: waiting.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
