"""Environment variables in, settings out: names, problems in sentences, and what is shown of them.

`load` is the only reader of the environment in the product. A COFFEE_RT_ name nobody knows is refused: a
misspelt setting must not pass as its default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from coffee_rt.runtime.addresses import mask_credentials, mask_secret
from coffee_rt.runtime.settings import (
    PREFIX,
    DatabaseSettings,
    ProcessSettings,
    RedisSettings,
    Settings,
    SettingsError,
)

PROCESSES = ("ORDER_API", "WORKER", "AGGREGATOR", "FANOUT", "QUERY_API", "OPERATOR")
"""Their prefixed names are ignored by the others, so that one environment can serve all."""

_FOREIGN_PREFIXES = tuple(f"{PREFIX}{name}_" for name in (*PROCESSES, "UP", "BENCH", "TEST"))
# What Kubernetes puts into a pod for each service of its namespace (a service may be called coffee-rt-...).
_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)\Z|_PORT(_\d+_(TCP|UDP)\w*)?\Z")

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as documentation and --help show it."""

    name: str
    default: str
    help: str
    is_secret: bool
    field: str


def describe(cls: type[Settings]) -> list[Setting]:
    """All settings of a class, the servers' included, in the order of declaration."""
    return [
        Setting(
            name=name,
            default=_text(info.get_default(call_default_factory=False)),
            help=info.description or "",
            is_secret=not info.repr,
            field=".".join(path),
        )
        for name, path, info in _fields(cls)
    ]


def load(cls: type[S], environ: Mapping[str, str] | None = None) -> S:
    """Settings from the environment (or a mapping). Raises SettingsError, a sentence per bad variable."""
    environ = os.environ if environ is None else environ
    problems = _unknown_names(cls, environ)
    values: dict[str, Any] = {}
    names: dict[tuple[str, ...], str] = {}
    for name, path, info in _fields(cls):
        names[path] = name
        if name in environ:
            node = values
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = _split(info, environ[name])
    try:
        settings = cls(**values)
    except ValidationError as error:
        problems.extend(_explain(error, names, cls))
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def masked(settings: Settings) -> dict[str, str]:
    """Every setting by its variable's name, credentials hidden: what a process prints at its start."""
    shown = {}
    for name, value, info in _values(settings):
        text = _text(value)
        # Any address may hold a password, that of a collector of traces too.
        shown[name] = mask_credentials(text) if info.repr else mask_secret(text)
    return shown


def to_environ(settings: Settings) -> dict[str, str]:
    """The environment that loads equal settings: what a parent process gives its children."""
    return {name: _text(value) for name, value, _info in _values(settings) if value is not None}


def environment() -> dict[str, str]:
    """A copy of this process's environment, for starting others with."""
    return dict(os.environ)


def _fields(
    cls: type[Settings], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...], FieldInfo]]:
    prefix = str(cls.model_config.get("env_prefix", PREFIX))
    process = str(getattr(cls, "process", "")).upper().replace("-", "_")
    for field, info in cls.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Settings):
            yield from _fields(info.annotation, (*path, field))
            continue
        is_own = isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("own")
        infix = f"{process}_" if is_own else ""
        yield f"{prefix}{infix}{field.upper()}", (*path, field), info


def _values(settings: Settings) -> Iterator[tuple[str, Any, FieldInfo]]:
    """Each setting by its variable's name, as it is now."""
    for name, path, info in _fields(type(settings)):
        value: Any = settings
        for part in path:
            value = getattr(value, part)
        yield name, value, info


def _unknown_names(cls: type[Settings], environ: Mapping[str, str]) -> list[str]:
    known = {name for name, _path, _info in _fields(cls)}
    for other in (ProcessSettings, RedisSettings, DatabaseSettings):
        known.update(name for name, _path, _info in _fields(other))
    process = str(getattr(cls, "process", "")).upper().replace("-", "_")
    mine = f"{PREFIX}{process}_" if process else None
    problems = []
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in known or _SERVICE_LINK.search(name):
            continue
        if name.startswith(_FOREIGN_PREFIXES) and not (mine and name.startswith(mine)):
            continue
        close = get_close_matches(name, known, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        problems.append(f"{name} is not a setting{hint}")
    return problems


def _explain(
    error: ValidationError, names: dict[tuple[str, ...], str], cls: type[Settings]
) -> Iterator[str]:
    secret = {name for name, _path, info in _fields(cls) if not info.repr}
    for problem in error.errors():
        place = tuple(str(part) for part in problem["loc"])
        name = next(
            (names[place[:end]] for end in range(len(place), 0, -1) if place[:end] in names),
            ".".join(place) or "settings",
        )
        message = problem["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        shown = mask_credentials(repr(problem["input"]))
        given = "" if name in secret or not place else f" (it is {shown})"
        yield f"{name}: {message}{given}"


def _split(info: FieldInfo, text: str) -> Any:
    """Lists are written with commas; an empty text is no value for an optional field."""
    if get_origin(info.annotation) in (tuple, list, frozenset):
        return [part.strip() for part in text.split(",") if part.strip()]
    if text == "" and info.default is None:
        return None
    return text


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (tuple, list, frozenset)):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if not isinstance(value, Path) else value.as_posix()
