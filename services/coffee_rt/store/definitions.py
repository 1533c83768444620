"""Loads view definitions: those that come with the package, and an operator's own folder of YAML files.

A file holds one definition. An own file of the same name as a built-in view's replaces it.
"""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import yaml

from coffee_rt.domain.view_documents import parse_view
from coffee_rt.domain.views import ViewDefinition
from coffee_rt.errors import Rejected
from coffee_rt.store.view_contract import VIEWS_MAX

FILE_BYTES_MAX = 64 * 1024


def load_definitions(extra_dir: Path | None = None) -> list[ViewDefinition]:
    """All definitions, sorted by name. Raises Rejected whose text names the file and the place in it."""
    files = _files(resources.files("coffee_rt") / "views", "built-in")
    definitions = {definition.name: definition for definition in map(_parse, files)}
    if extra_dir is not None:
        if not extra_dir.is_dir():
            raise Rejected("bad-view", f"{extra_dir} is not a folder")
        own: dict[str, Traversable] = {}
        for file in _files(extra_dir, str(extra_dir)):
            definition = _parse(file)
            if definition.name in own:
                first = own[definition.name].name
                raise Rejected(
                    "bad-view", f"{file.name}: {first} already defines {definition.name}"
                )
            own[definition.name] = file
            definitions[definition.name] = definition
    if len(definitions) > VIEWS_MAX:
        raise Rejected(
            "bad-view", f"{len(definitions)} views are defined, at most {VIEWS_MAX} may be"
        )
    return [definitions[name] for name in sorted(definitions)]


def _files(folder: Traversable, name: str) -> list[Traversable]:
    try:
        return sorted(
            (file for file in folder.iterdir() if file.name.endswith((".yaml", ".yml"))),
            key=lambda file: file.name,
        )
    except OSError as error:
        raise Rejected("bad-view", f"{name} can't be read: {error.strerror}") from error


def _parse(file: Traversable) -> ViewDefinition:
    try:
        source = file.read_bytes()
        if len(source) > FILE_BYTES_MAX:
            raise Rejected("bad-view", f"{file.name}: is larger than {FILE_BYTES_MAX} bytes")
        return parse_view(yaml.safe_load(source))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise Rejected("bad-view", f"{file.name}{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: no UTF-8, a date that is none, a number of thousands of digits.
        raise Rejected("bad-view", f"{file.name}: is not YAML: {error}") from error
    except OSError as error:
        raise Rejected("bad-view", f"{file.name}: can't be read: {error.strerror}") from error
    except Rejected as error:
        if error.detail.startswith(file.name):
            raise
        place = error.place or "/"
        raise Rejected("bad-view", f"{file.name} at {place}: {error.detail}", error.place) from None
