"""What of the chart is written from other files: settings in its schema, and the table of its README.

`python k8s-tests/chart/chart_documents.py --write` writes both; a test compares them. The schema's definitions
`<process>Settings` come from the settings classes, so that a value the program would refuse is refused before
anything is installed. The table comes from the comments of values.yaml.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from coffee_rt.runtime.settings import DatabaseSettings, ProcessSettings, RedisSettings

CHART = Path(__file__).resolve().parents[2] / "helm" / "coffee-rt"
SCHEMA = CHART / "values.schema.json"
README = CHART / "README.md"
TABLE_MARK = "<!-- From here on written by k8s-tests/chart/chart_documents.py -->\n"
DEFAULT_SHOWN_MAX = 48

PROCESSES = {
    "orderApi": "order_api",
    "worker": "worker",
    "aggregator": "aggregator",
    "fanout": "fanout",
    "queryApi": "query_api",
    "operator": "operator",
}
"""Key in values.yaml -> package of the process."""

SET_BY_THE_CHART = frozenset(
    {
        "instance",
        "auth",
        "http_host",
        "http_port",
        "grace_seconds",
        "redis.url",
        "redis.ca_file",
        "database.ca_file",
        "database.certificate_file",
        "database.key_file",
        "database.url",
        "database.replica_url",
        "database.pool_size_max",
        "fanout.websocket_host",
        "fanout.websocket_port",
        "aggregator.views_dir",
    }
)
"""What would contradict the chart's own addresses, ports, mounts and sums."""

_KEY = re.compile(r"( *)([A-Za-z]\w*):(.*)")
_NOT_SCHEMA = ("title", "default", "description", "own", "format")


def settings_class(key: str) -> type[ProcessSettings]:
    """The settings class of a process, by its key in values.yaml."""
    package = PROCESSES[key]
    module = import_module(f"coffee_rt.{package}.settings")
    for value in vars(module).values():
        if not isinstance(value, type) or not issubclass(value, ProcessSettings):
            continue
        if value.process.replace("-", "_") == package:
            return value
    raise LookupError(f"{package} has no settings class")


def settings_definitions() -> dict[str, dict[str, Any]]:
    """The schema's definitions that say which settings there are."""
    shared = _definition(ProcessSettings, "", is_own=False)
    shared["properties"] |= {
        "redis": {"$ref": "#/$defs/redisSettings"},
        "database": {"$ref": "#/$defs/databaseSettings"},
        "extra": {
            "type": "object",
            "additionalProperties": False,
            "patternProperties": {"^COFFEE_RT_[A-Z0-9_]+$": {"$ref": "#/$defs/settingValue"}},
        },
    }
    return {
        "sharedSettings": shared,
        "redisSettings": _definition(RedisSettings, "redis.", is_own=False),
        "databaseSettings": _definition(DatabaseSettings, "database.", is_own=False),
        **{
            f"{key}Settings": _definition(settings_class(key), f"{key}.", is_own=True)
            for key in PROCESSES
        },
    }


def _definition(cls: Any, place: str, *, is_own: bool) -> dict[str, Any]:
    properties = {
        camel_case(name): _property(found)
        for name, found in cls.model_json_schema()["properties"].items()
        if bool(found.get("own")) is is_own
        and "$ref" not in found
        and f"{place}{name}" not in SET_BY_THE_CHART
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _property(found: dict[str, Any]) -> dict[str, Any]:
    """A pydantic property as the chart checks it; an empty text leaves an optional setting unset."""
    kinds: list[dict[str, Any]] = found.get("anyOf", [])
    kind = next((each for each in kinds if each.get("type") != "null"), {})
    kept = {key: value for key, value in {**found, **kind}.items() if key not in _NOT_SCHEMA}
    kept.pop("anyOf", None)
    help_text = re.sub(r"\s+", " ", found.get("description", ""))
    return {"description": help_text, **kept}


def camel_case(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def schema_text() -> str:
    """values.schema.json with its definitions of settings as they should be."""
    schema = json.loads(SCHEMA.read_text("utf-8"))
    schema["$defs"] |= settings_definitions()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class Value:
    """A key of values.yaml with its comment; `default` as YAML has it."""

    path: tuple[str, ...]
    default: Any
    help: str


def documented_values() -> list[Value]:
    """Keys with a comment that begins with `# --`, in the order of the file."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    return [
        Value(path, _at(defaults, path), help_text)
        for path, help_text in _commented_keys((CHART / "values.yaml").read_text("utf-8"))
        if help_text
    ]


def undocumented_values() -> list[str]:
    """Keys that neither have a comment nor stand below one that has."""
    documented = {value.path for value in documented_values()}
    defaults = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    return [
        ".".join(path)
        for path in leaves(defaults)
        if not any(path[:end] in documented for end in range(1, len(path) + 1))
    ]


def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths to everything that is not a mapping with something in it."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    else:
        yield path


def _commented_keys(text: str) -> Iterator[tuple[tuple[str, ...], str]]:
    stack: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# --"):
            comment = [stripped.removeprefix("# --").strip()]
        elif stripped.startswith("#") and comment:
            comment.append(stripped.removeprefix("#").strip())
        elif match := _KEY.fullmatch(line):
            indent = len(match[1])
            stack = [(depth, key) for depth, key in stack if depth < indent]
            stack.append((indent, match[2]))
            yield tuple(key for _depth, key in stack), " ".join(comment)
            comment = []
        else:
            comment = []


def _at(values: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def readme_text() -> str:
    """README.md with its table as it should be."""
    head, _mark, _table = README.read_text("utf-8").partition(TABLE_MARK)
    rows = "".join(map(_row, documented_values()))
    return f"{head}{TABLE_MARK}\n## Values\n\n| key | default | meaning |\n|---|---|---|\n{rows}"


def _row(value: Value) -> str:
    meaning = value.help.replace("|", "\\|")
    return f"| `{'.'.join(value.path)}` | {_shown(value.default)} | {meaning} |\n"


def _shown(default: Any) -> str:
    text = json.dumps(default, ensure_ascii=False)
    return f"`{text}`" if len(text) <= DEFAULT_SHOWN_MAX else "see values.yaml"


def main() -> None:
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(f"usage: {sys.argv[0]} --write")
    SCHEMA.write_text(schema_text(), "utf-8")
    README.write_text(readme_text(), "utf-8")


if __name__ == "__main__":
    main()
