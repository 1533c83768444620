"""All mechanisms, and the page of the documentation that lists them."""

from __future__ import annotations

import textwrap

from tests.mechanics.accepting import ACCEPTING
from tests.mechanics.mechanism import ROOT, Mechanism
from tests.mechanics.storing import STORING
from tests.mechanics.views import VIEWS

SECTIONS: tuple[tuple[str, tuple[Mechanism, ...]], ...] = (
    ("Accepting", ACCEPTING),
    ("Storing", STORING),
    ("Views", VIEWS),
)
MECHANISMS = tuple(mechanism for _, mechanisms in SECTIONS for mechanism in mechanisms)
PAGE = ROOT / "docs" / "mechanics-tests.md"

_HEAD = """\
# Mechanisms and what fails without them

Some of what the code does looks as if it could be left out, and a plausible other way was seen to lose,
double or lie on real servers. Each of these mechanisms has a mutation that undoes it and tests that must fail
then: `python -m tests.mechanics` runs those tests on the code as it is, then on one copy after the other
with a mechanism undone, and names every test that passes all the same. Paths are below `tests/`.

This page is written from `tests/mechanics` by `python -m tests.mechanics --write`.
"""


def fill(words: str, width: int) -> str:
    """One item of a list."""
    return textwrap.fill(words, width, initial_indent="- ", subsequent_indent="  ")


def capitalized(words: str) -> str:
    return words[:1].upper() + words[1:]


def mechanics_page() -> str:
    """docs/mechanics-tests.md."""
    parts = [_HEAD]
    for title, mechanisms in SECTIONS:
        parts.append(f"\n## {title}\n")
        for mechanism in mechanisms:
            tests = "\n  ".join(f"`{test}`" for test in mechanism.tests)
            does, harm = capitalized(mechanism.does), capitalized(mechanism.harm)
            words = f"**{mechanism.name}** · {does}. *Without it:* {harm}."
            parts.append(f"\n{fill(words, 112)}\n  {tests}\n")
    return "".join(parts)
