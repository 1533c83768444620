"""The worker's settings and its core agree."""

from __future__ import annotations

from dataclasses import replace

from coffee_rt.runtime.environment import describe, load
from coffee_rt.worker.parts import WorkerLimits
from coffee_rt.worker.settings import WorkerSettings
from coffee_rt.worker.wiring import limits_of


def test_defaults_of_the_settings_are_those_of_the_core() -> None:
    limits = limits_of(load(WorkerSettings, {"COFFEE_RT_INSTANCE": "w"}))
    expected = WorkerLimits()
    assert limits == replace(expected, care=replace(expected.care, instance="w"))


def test_every_setting_reaches_the_core() -> None:
    own = [s for s in describe(WorkerSettings) if s.name.startswith("COFFEE_RT_WORKER_")]
    # Switches choose parts of the worker; the numbers are its limits.
    numbers = {s.name: s for s in own if s.default not in ("true", "false")}
    default = limits_of(load(WorkerSettings, {}))
    for name, setting in numbers.items():
        changed = load(WorkerSettings, {name: str(type_of(setting.default) + 1)})
        assert limits_of(changed) != default, name


def test_drain_ends_within_the_grace_period() -> None:
    settings = WorkerSettings()
    assert settings.drain_seconds_max + 10 <= settings.grace_seconds


def type_of(text: str) -> float | int:
    return float(text) if "." in text else int(text)
