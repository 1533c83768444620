"""skaffold.yaml names only what exists: files, images, stages, services, values."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "coffee-rt"
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "skaffold.yaml").read_text())
PROFILES: list[dict[str, Any]] = CONFIG["profiles"]
ARTIFACTS: list[dict[str, Any]] = [
    *CONFIG["build"]["artifacts"],
    *(one for profile in PROFILES for one in profile.get("build", {}).get("artifacts", ())),
]
RELEASE: dict[str, Any] = CONFIG["manifests"]["helm"]["releases"][0]
FORWARDS: list[dict[str, Any]] = [
    *CONFIG["portForward"],
    *(one for profile in PROFILES for one in profile.get("portForward", ())),
]
PATCHES: list[dict[str, Any]] = [
    patch for profile in PROFILES for patch in profile.get("patches", ())
]
VALUES_FILES: list[str] = [*RELEASE["valuesFiles"], *(patch["value"] for patch in PATCHES)]


@cache
def chart_values() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return values


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """As helm merges values."""
    result = deepcopy(below)
    for key, value in above.items():
        both_tables = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both_tables else deepcopy(value)
    return result


def values_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return values


def dev_values() -> dict[str, Any]:
    values = chart_values()
    for name in RELEASE["valuesFiles"]:
        values = merged(values, values_of(name))
    return values


def key_paths(values: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from key_paths(value, f"{above}{key}.")


def commands(node: Any) -> Iterator[list[str]]:
    """Each command of a hook, split into words; what a shell is given is split as well."""
    if isinstance(node, dict):
        if isinstance(node.get("command"), list):
            yield [word for part in node["command"] for word in shlex.split(part)]
        for value in node.values():
            yield from commands(value)
    elif isinstance(node, list):
        for value in node:
            yield from commands(value)


def stages() -> set[str]:
    text = (ROOT / "services" / "Dockerfile").read_text()
    return set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))


def test_there_are_the_profiles_that_the_documentation_names() -> None:
    text = (ROOT / "docs" / "development.md").read_text()
    names = {profile["name"] for profile in PROFILES}
    assert names == {"dev", "debug", "ha", "buildah"}
    assert names <= set(re.findall(r"--profile (\w+)", text))


@pytest.mark.parametrize("name", [RELEASE["chartPath"], *VALUES_FILES])
def test_paths_of_the_release_exist(name: str) -> None:
    assert (ROOT / name).exists()


def test_the_image_is_a_stage_of_the_dockerfile() -> None:
    docker = ARTIFACTS[0]["docker"]
    assert (ROOT / docker["dockerfile"]).is_file()
    assert docker["target"] in stages()


def test_a_custom_build_runs_a_script_with_a_stage_that_exists() -> None:
    custom = [artifact["custom"] for artifact in ARTIFACTS if "custom" in artifact]
    assert custom
    for one in custom:
        words = shlex.split(one["buildCommand"])
        usage = (ROOT / words[0]).read_text()
        assert words[words.index("--target") + 1] in stages()
        assert all(word in usage for word in words if word.startswith("--"))
        assert [path for path in one["dependencies"]["paths"] if not any(ROOT.glob(path))] == []


def test_each_build_makes_the_one_image_whose_name_the_chart_is_given() -> None:
    assert {artifact["image"] for artifact in ARTIFACTS} == {"coffee-rt"}
    templates = RELEASE["setValueTemplates"]
    assert set(templates.values()) == {
        "{{.IMAGE_REPO_coffee_rt}}",
        "{{.IMAGE_TAG_coffee_rt}}",
        "{{.IMAGE_DIGEST_coffee_rt}}",
    }


@pytest.mark.parametrize("artifact", ARTIFACTS, ids=lambda artifact: artifact["image"])
def test_synced_files_exist_and_land_where_the_process_is_run_from(
    artifact: dict[str, Any],
) -> None:
    rules = artifact["sync"]["manual"]
    for rule in rules:
        found = [path for path in ROOT.glob(rule["src"]) if path.is_file()]
        assert found, rule["src"]
        assert rule["src"].startswith(rule["strip"])
    [of_python] = [rule for rule in rules if rule["src"].startswith("services/")]
    assert of_python["strip"] == "services/"
    loop = (ROOT / "services" / "dev-loop").read_text()
    assert f"\nsource={of_python['dest']}\n" in loop


def test_all_builds_sync_alike() -> None:
    assert all(artifact["sync"] == ARTIFACTS[0]["sync"] for artifact in ARTIFACTS)


def test_scripts_that_hooks_run_exist() -> None:
    found = [word for words in commands(CONFIG) for word in words if word.startswith("scripts/")]
    assert found
    assert [word for word in found if not (ROOT / word).is_file()] == []


@pytest.mark.parametrize("name", VALUES_FILES)
def test_values_are_keys_of_the_chart_and_fit_its_schema(name: str) -> None:
    values = values_of(name)
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(key_paths(chart_values()))
    # Tables that are empty in values.yaml take any key that the schema allows.
    free = {path for path in known if _at(chart_values(), path) == {}}
    unknown = [
        path
        for path in key_paths(values)
        if path not in known and not any(path.startswith(f"{table}.") for table in free)
    ]
    assert unknown == []
    Draft7Validator(schema).validate(merged(dev_values(), values))


def test_templated_values_are_keys_of_the_chart() -> None:
    assert set(RELEASE["setValueTemplates"]) <= set(key_paths(chart_values()))


def test_patches_add_values_files_to_the_one_release() -> None:
    assert {(patch["op"], patch["path"]) for patch in PATCHES} == {
        ("add", "/manifests/helm/releases/0/valuesFiles/-")
    }
    assert len(CONFIG["manifests"]["helm"]["releases"]) == 1


@pytest.mark.parametrize(
    "forward", FORWARDS, ids=lambda one: f"{one['resourceName']}:{one['port']}"
)
def test_forwarded_ports_are_ports_of_the_chart(forward: dict[str, Any]) -> None:
    component = forward["resourceName"].removeprefix(f"{RELEASE['name']}-")
    folder = CHART / "templates" / component
    if forward["resourceType"] == "service":
        assert f"port: {forward['port']}," in (folder / "service.yaml").read_text()
        return
    assert (folder / "deployment.yaml").is_file()
    [debug] = [name for name in VALUES_FILES if "DEBUGPY_PORT" in (ROOT / name).read_text()]
    section = re.sub(r"-(\w)", lambda found: found[1].upper(), component)
    assert values_of(debug)[section]["extraEnv"] == [
        {"name": "DEBUGPY_PORT", "value": str(forward["port"])}
    ]


def test_local_ports_are_each_used_once_and_known_to_the_front() -> None:
    ports = [forward["localPort"] for forward in FORWARDS]
    assert len(ports) == len(set(ports))
    front = (ROOT / "scripts" / "front").read_text()
    forwarded = re.findall(r'^forward "\$name-([\w-]+)" (\d+) (\d+)$', front, re.MULTILINE)
    assert {(f"coffee-rt-{name}", int(port), int(local)) for name, port, local in forwarded} == {
        (one["resourceName"], one["port"], one["localPort"]) for one in CONFIG["portForward"]
    }


def _at(values: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values
