"""What the chart takes and refuses, and that its documents say what it does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import chart_documents as documents
import pytest
import yaml
from rendering import CHART, CI_FILES, Chart, name_of

MAXIMAL = "maximal-values.yaml"
INSTEAD = {"redisSettings": {"certificateFile", "keyFile"}}
"""Settings for which the maximal values set something else, since the chart refuses both."""


def defaults() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))
    return values


def maximal() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHART / "ci" / MAXIMAL).read_text("utf-8"))
    return values


@pytest.mark.parametrize("file", CI_FILES)
def test_each_set_of_values_is_clean(chart: Chart, file: str) -> None:
    assert "0 chart(s) failed" in chart.lint(file)
    assert chart.render({}, file).objects


def test_the_schema_knows_the_settings_of_every_process() -> None:
    """Written by chart_documents.py --write."""
    assert documents.SCHEMA.read_text("utf-8") == documents.schema_text()


def test_the_readme_lists_every_value() -> None:
    """Written by chart_documents.py --write."""
    assert documents.README.read_text("utf-8") == documents.readme_text()


def test_every_value_is_explained() -> None:
    assert documents.undocumented_values() == []


def test_the_maximal_values_set_every_key() -> None:
    missing, empty, everything = [], [], maximal()
    for path in documents.leaves(defaults()):
        value: Any = everything
        for key in path:
            value = value.get(key, ...) if isinstance(value, dict) else ...
            if value is ...:
                missing.append(".".join(path))
                break
        if value in ({}, [], ""):
            empty.append(".".join(path))
    assert (missing, empty) == ([], [])


def test_the_maximal_values_set_every_setting() -> None:
    schema = json.loads(documents.SCHEMA.read_text("utf-8"))
    values = maximal()
    given = {f"{key}Settings": values[key]["settings"] for key in documents.PROCESSES}
    given |= {
        "sharedSettings": values["settings"],
        "redisSettings": values["settings"]["redis"],
        "databaseSettings": values["settings"]["database"],
    }
    for name, settings in given.items():
        instead = INSTEAD.get(name, set())
        assert not set(settings) & instead
        assert set(settings) | instead == set(schema["$defs"][name]["properties"]), name


def test_an_unknown_key_is_refused_wherever_it_stands(chart: Chart) -> None:
    """Below every mapping of values.yaml that has keys of its own."""
    values: dict[str, Any] = {}
    places = sorted(
        {path[:end] for path in documents.leaves(defaults()) for end in range(len(path))}
    )
    free = {path for path in places if path[-1:] in (("requests",), ("limits",), ("labels",))}
    for path in places:
        node = values
        for key in path:
            node = node.setdefault(key, {})
        if path not in free:
            node["misspelt"] = 1
    said = chart.refusal(values)
    assert said.count("misspelt") == len(set(places) - free)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"orderApi": {"replicas": -1}}, "/orderApi/replicas"),
        ({"settings": {"shards": 0}}, "/settings/shards"),
        ({"settings": {"logLevel": "loud"}}, "/settings/logLevel"),
        ({"worker": {"settings": {"lingerMs": -5}}}, "/worker/settings/lingerMs"),
        ({"worker": {"settings": {"lingerms": 5}}}, "/worker/settings"),
        ({"fanout": {"databasePoolSizeMax": 0}}, "/fanout/databasePoolSizeMax"),
        ({"queryApi": {"resources": {"limits": {"memory": "1 GB"}}}}, "/memory"),
        ({"image": {"repository": ""}}, "/image/repository"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
        ({"autoscaling": {"backend": "magic"}}, "/autoscaling/backend"),
        ({"auth": {"existingSecret": "Not A Name"}}, "/auth/existingSecret"),
        ({"auth": {"keyName": ""}}, "/auth/keyName"),
        ({"views": {"definitions": {"regions.yaml": ""}}}, "/views/definitions"),
        ({"views": {"definitions": {"../regions.yaml": "name: x"}}}, "/views/definitions"),
        ({"trustedProxies": ["everybody"]}, "/trustedProxies"),
        ({"settings": {"extra": {"PATH": "/tmp"}}}, "/settings/extra"),
        ({"valkey": {"mode": "sometimes"}}, "/valkey/mode"),
        ({"postgresql": {"mode": "mysql"}}, "/postgresql/mode"),
    ],
)
def test_a_wrong_value_is_refused_by_its_place(
    chart: Chart, values: dict[str, Any], place: str
) -> None:
    said = chart.refusal(values)
    assert place in said or place.strip("/").replace("/", ".") in said


@pytest.mark.parametrize("store", ["valkey", "postgresql"])
def test_an_external_store_without_an_address_is_refused(chart: Chart, store: str) -> None:
    assert store in chart.refusal({store: {"mode": "external"}})


def test_a_release_name_of_63_characters_is_refused(chart: Chart) -> None:
    assert "name" in chart.refusal({}, name="x" * 63)


def test_names_that_are_not_names_of_kubernetes_are_refused(chart: Chart) -> None:
    assert "/fullnameOverride" in chart.refusal({"fullnameOverride": "Orders_1"})


def test_the_notes_say_how_to_post_an_order_and_where_the_page_is(
    chart: Chart, tmp_path: Path
) -> None:
    """helm prints them at an install only, so a copy of the chart renders them as an object."""
    copy = tmp_path / "coffee-rt"
    shutil.copytree(CHART, copy)
    (copy / "templates" / "NOTES.txt").rename(copy / "notes.txt")
    (copy / "templates" / "notes.yaml").write_text(
        'kind: Notes\nmetadata: {name: notes}\ntext: {{ tpl (.Files.Get "notes.txt") . | toJson }}\n'
    )
    plain = _notes(chart, copy, {})
    assert "port-forward service/shop-coffee-rt-order-api 8080:80" in plain
    assert "curl http://localhost:8080/api/v1/orders" in plain
    assert "get secret shop-coffee-rt-api-key" in plain
    assert "helm test shop --namespace orders" in plain
    hosted = _notes(
        chart,
        copy,
        {
            "ingress": {"enabled": True, "host": "orders.example.com"},
            "tls": {"enabled": True, "secretName": "tls"},
            "auth": {"existingSecret": "first-key"},
        },
    )
    assert "Open https://orders.example.com in a browser" in hosted
    assert "curl https://orders.example.com/api/v1/orders" in hosted
    assert "get secret first-key" in hosted
    assert "port-forward" not in hosted


def _notes(chart: Chart, copy: Path, values: dict[str, Any]) -> str:
    command = [chart.helm, "template", "shop", str(copy), "--namespace", "orders", "--values=-"]
    command += ["--kube-version", "1.29.0", "--show-only", "templates/notes.yaml"]
    [notes] = [each for each in yaml.safe_load_all(chart.run(command, values)) if each]
    assert name_of(notes) == "notes"
    return str(notes["text"])
