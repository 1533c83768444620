"""The dashboard page's files, and what is said where there are none."""

from __future__ import annotations

import gzip
from pathlib import Path

from coffee_rt.fanout.page_files import content_security_policy, load_page


def test_files_carry_how_long_they_stay_true(tmp_path: Path) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html>")
    (tmp_path / "assets" / "index-abc.js").write_text("let a = 1;" * 1000)
    page = load_page(tmp_path)
    assert page["/"].cache_control == "no-cache"
    script = page["/assets/index-abc.js"]
    assert "immutable" in script.cache_control
    assert script.compressed is not None
    assert gzip.decompress(script.compressed) == script.body
    assert script.kind.startswith("text/javascript")


def test_a_missing_page_says_how_to_build_it(tmp_path: Path) -> None:
    page = load_page(tmp_path)
    assert b"not built" in page["/"].body
    assert set(page) == {"/", "/index.html"}


def test_links_out_of_the_folder_are_not_served(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<!doctype html>")
    (folder / "link.txt").symlink_to(secret)
    assert "/link.txt" not in load_page(folder)


def test_the_policy_allows_nothing_inline_and_survives_a_strange_host() -> None:
    assert "ws://coffee.example:8080" in content_security_policy("coffee.example:8080")
    assert "evil" not in content_security_policy("x; script-src evil")
    assert "unsafe" not in content_security_policy("[::1]:8080")
