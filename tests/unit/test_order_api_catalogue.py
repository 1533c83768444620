"""The file that closes the lists of stores and drinks: read, or refused in a sentence at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from coffee_rt.order_api.settings import OrderApiSettings
from coffee_rt.order_api.wiring import load_catalogue
from coffee_rt.runtime.settings import SettingsError


def test_its_lists_are_those_that_are_taken(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.yaml"
    file.write_text("drinks: [latte, tea]\n")
    catalogue = load_catalogue(OrderApiSettings(catalogue_file=file))
    assert (catalogue.stores, catalogue.drinks) == (None, frozenset({"latte", "tea"}))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[latte]",
        b"drinks: latte",
        b"drinks: [1]",
        b"menu: [latte]",
        b"drinks: [",
        b"drinks: [\xff]",
        b"drinks: [2026-13-45]",
        b"drinks: [%b]" % (b"1" * 5000),
        b"[" * 5000,
    ],
)
def test_one_that_is_none_is_refused_by_the_settings_name(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "catalogue.yaml"
    file.write_bytes(text)
    with pytest.raises(SettingsError) as caught:
        load_catalogue(OrderApiSettings(catalogue_file=file))
    assert str(caught.value).startswith("COFFEE_RT_ORDER_API_CATALOGUE_FILE: ")


def test_a_missing_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CATALOGUE_FILE"):
        load_catalogue(OrderApiSettings(catalogue_file=tmp_path / "none"))
