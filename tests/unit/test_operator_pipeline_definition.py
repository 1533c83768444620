"""The OrderPipeline's definition: what every definition must have, and that it agrees with the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from coffee_rt.operator.contract import GROUP, VERSION
from coffee_rt.operator.pipeline_handlers import PLURAL
from coffee_rt.operator.pipeline_spec import parse_spec
from coffee_rt.store.contract import KEEP_DAYS_MIN
from tests.tender_bed import TenderBed

FILE = Path(__file__).parents[2] / "helm" / "coffee-rt" / "crds" / "orderpipelines.yaml"
NAMES = {"workers": {"deployment": "w"}, "fanout": {"deployment": "f"}}


@pytest.fixture(scope="module")
def definition() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


@pytest.fixture(scope="module")
def version(definition: dict[str, Any]) -> dict[str, Any]:
    (only,) = definition["spec"]["versions"]
    return dict(only)


@pytest.fixture(scope="module")
def schema(version: dict[str, Any]) -> dict[str, Any]:
    return dict(version["schema"]["openAPIV3Schema"])


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")


def filled(schema: dict[str, Any], value: Any) -> Any:
    """The value with the schema's defaults, as the API server fills them in."""
    if not isinstance(value, dict):
        return value
    done = dict(value)
    for name, child in schema.get("properties", {}).items():
        if name not in done and "default" in child:
            done[name] = child["default"]
        if name in done:
            done[name] = filled(child, done[name])
    return done


def test_its_names_are_those_the_operator_watches(definition: dict[str, Any]) -> None:
    spec = definition["spec"]
    assert definition["metadata"]["name"] == f"{PLURAL}.{GROUP}"
    assert (spec["group"], spec["names"]["plural"]) == (GROUP, PLURAL)
    assert spec["names"]["shortNames"] == ["orp"]
    assert spec["names"]["categories"] == ["coffee-rt"]
    assert spec["scope"] == "Namespaced"


def test_its_version_is_stored_and_has_a_status_and_columns(version: dict[str, Any]) -> None:
    assert (version["name"], version["served"], version["storage"]) == (VERSION, True, True)
    assert version["subresources"] == {"status": {}}
    assert {"Ready", "Backlog", "Age"} <= {
        one["name"] for one in version["additionalPrinterColumns"]
    }


def test_its_schema_is_structural(schema: dict[str, Any]) -> None:
    for path, node in nodes(schema):
        assert "type" in node, path
        assert "$ref" not in node, path
        if node["type"] == "array":
            assert "items" in node, path


def test_each_wish_is_described_and_bounded(schema: dict[str, Any]) -> None:
    spec = schema["properties"]["spec"]
    for path, node in nodes(spec):
        assert node.get("description") or path.endswith(".enabled"), path
        if node["type"] in {"integer", "number"}:
            assert {"minimum", "maximum"} <= set(node), path
        if node["type"] == "string":
            assert "enum" in node or "maxLength" in node, path


def test_the_columns_and_the_written_status_are_in_the_schema(
    version: dict[str, Any], schema: dict[str, Any]
) -> None:
    known = {path for path, _ in nodes(schema)}
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"].split("[?")[0]
        assert path in known or path.startswith(".metadata"), path


async def test_the_status_that_is_written_fits_the_schema(schema: dict[str, Any]) -> None:
    bed = TenderBed()
    bed.cluster.put_autoscaler("worker", 1, 6)
    bed.cluster.put_autoscaler("fanout", 2, 8)
    bed.pipeline()
    status = await bed.turn()
    wanted = schema["properties"]["status"]
    assert set(status) <= set(wanted["properties"])
    jsonschema.validate(status, closed(wanted))


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema that refuses what it does not name: the API server would drop that silently."""
    done = {**schema}
    if "properties" in schema:
        done["properties"] = {name: closed(one) for name, one in schema["properties"].items()}
        done["additionalProperties"] = False
    if "items" in schema:
        done["items"] = closed(schema["items"])
    return done


def test_the_defaults_of_schema_and_code_are_the_same(schema: dict[str, Any]) -> None:
    assert parse_spec(filled(schema["properties"]["spec"], NAMES)) == parse_spec(NAMES)


def test_retention_is_never_shorter_than_the_store_allows(schema: dict[str, Any]) -> None:
    partitions = schema["properties"]["spec"]["properties"]["partitions"]["properties"]
    assert partitions["retentionDays"]["minimum"] == KEEP_DAYS_MIN
