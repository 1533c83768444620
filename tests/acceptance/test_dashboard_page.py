"""The dashboard in a real browser, on the platform as `coffee-rt up` starts it: from POST to the pixel.

Every test posts to stores of its own and looks through their filter, so that tests share one platform. A page
that logged an error, raised one or broke the content security policy fails its test at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Locator, Page, Response, expect, sync_playwright

from tests.acceptance.running import Platform

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

SEEN_MS_MAX = 30_000
"""A limit for failing, not a promise: two cores may be busy with other tests."""

WATCH_POLICY = """
    window.violations = [];
    addEventListener("securitypolicyviolation", (event) =>
        violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""

WATCH_CONNECTION = """() => {
    window.seen = [];
    const look = () => seen.push([
        document.querySelector("[role=status]").textContent,
        document.querySelector(".freshness").dataset.stale,
        document.querySelector("[data-figure=revenue-today]").value,
    ]);
    const changes = { subtree: true, childList: true, characterData: true, attributes: true };
    new MutationObserver(look).observe(document.body, changes);
}"""
"""Notes every state the page shows: the outage may be shorter than the pauses between two looks at it."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "these tests need Debian's chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield started
        started.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(platform: Platform, browser: Browser) -> Iterator[OpenPage]:
    """Open the page, filtered by a store or not; extra arguments are the browser context's."""
    opened: list[tuple[Page, list[str]]] = []

    def open_(store: str | None = None, **context: Any) -> Page:
        page = browser.new_context(locale="en-GB", **context).new_page()
        page.set_default_timeout(SEEN_MS_MAX)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.add_init_script(WATCH_POLICY)
        opened.append((page, errors))
        page.goto(f"{platform.address}/{address_hash(store)}")
        return page

    yield open_
    for page, errors in opened:
        # A refused connection is logged by the browser itself; recovering from it is what is tested.
        unexpected = [error for error in errors if "WebSocket connection to" not in error]
        assert unexpected == []
        assert page.evaluate("violations") == []
        page.context.close()


def address_hash(store: str | None) -> str:
    return f"#{urlencode({'store': store})}" if store else ""


@pytest.fixture(scope="module")
def greeting(platform: Platform, browser: Browser) -> str:
    """What the page said while there was no order at all."""
    page = browser.new_page()
    page.goto(platform.address)
    text = page.locator(".empty").inner_text(timeout=SEEN_MS_MAX)
    page.close()
    return text


@pytest.fixture
def store(greeting: str) -> str:
    """A store no other test posts to; nothing was posted before the greeting was read."""
    return f"store {uuid.uuid4().hex[:8]}"


def figure(page: Page, name: str) -> Locator:
    return page.locator(f"[data-figure={name}]")


def expect_figure(page: Page, name: str, value: str) -> None:
    expect(figure(page, name)).to_have_attribute("value", value, timeout=SEEN_MS_MAX)


def expect_live(page: Page) -> None:
    badge = page.locator("[data-connection=live]")
    expect(badge).to_have_text("Live", timeout=SEEN_MS_MAX)


def test_an_order_posted_is_seen_in_the_page(
    platform: Platform, open_page: OpenPage, store: str
) -> None:
    page = open_page(store)
    expect_live(page)
    expect_figure(page, "orders-today", "0")
    platform.post(store, "4.50", quantity=2, drink="flat white")
    expect_figure(page, "orders-today", "1")
    expect_figure(page, "revenue-today", "9.00")
    expect(figure(page, "revenue-today")).to_have_text("9.00")
    ticker = page.locator(".ticker tbody tr")
    expect(ticker).to_have_count(1)
    expect(ticker).to_contain_text("2 × flat white")
    expect(page.locator(".drinks tbody tr")).to_contain_text("flat white")
    age_ms = figure(page, "age-ms").get_attribute("value")
    assert age_ms is not None
    assert int(age_ms) < 60_000


def test_an_empty_shop_shows_how_to_post_the_first_order(platform: Platform, greeting: str) -> None:
    assert "No orders yet" in greeting
    assert f"curl -X POST {platform.address}/api/v1/orders" in greeting


def test_the_page_recovers_to_the_right_numbers_when_its_server_is_killed(
    platform: Platform, open_page: OpenPage, store: str
) -> None:
    platform.post(store, "4.50")
    page = open_page(store)
    expect_figure(page, "revenue-today", "4.50")
    page.locator(".minutes summary").first.click()
    page.get_by_role("button", name="Pause").focus()

    page.evaluate(WATCH_CONNECTION)
    killed = platform.pid_of("fanout")
    os.kill(killed, signal.SIGKILL)
    for _ in range(5):
        platform.post(store, "3.20", quantity=2)

    expect_figure(page, "revenue-today", "36.50")
    expect_figure(page, "orders-today", "6")
    expect(page.locator(".ticker tbody tr")).to_have_count(6)
    expect_live(page)
    assert platform.pid_of("fanout") != killed
    # While it was away the page said so, and went on showing what it knew.
    assert ["Reconnecting", "true", "4.50"] in page.evaluate("seen")
    platform.post(store, "1.00")
    expect_figure(page, "revenue-today", "37.50")

    # Its place was kept: what was open, where the keyboard is, what is filtered.
    expect(page.locator(".minutes details").first).to_have_attribute("open", "")
    expect(page.get_by_role("button", name="Pause")).to_be_focused()
    expect(page.get_by_role("heading", level=1)).to_contain_text(store)


def test_the_page_says_when_the_database_stands_still_and_keeps_its_numbers(
    platform: Platform, open_page: OpenPage, store: str
) -> None:
    platform.post(store, "4.50")
    page = open_page(store)
    expect_figure(page, "revenue-today", "4.50")
    with platform.frozen("PostgreSQL"):
        # The socket lives: only the server's word of how old its news are tells.
        expect(page.locator("[data-connection=stale]")).to_have_text("Stale", timeout=SEEN_MS_MAX)
        expect(page.locator(".freshness")).to_have_attribute("data-stale", "true")
        platform.post(store, "3.20")
        expect_figure(page, "revenue-today", "4.50")
    expect_live(page)
    expect_figure(page, "revenue-today", "7.70")
    expect(page.locator(".freshness")).to_have_attribute("data-stale", "false")


def test_the_store_filter_narrows_every_figure_and_is_kept_in_the_address(
    platform: Platform, open_page: OpenPage, store: str
) -> None:
    other = f"{store} annex"
    platform.post(store, "4.50")
    platform.post(other, "2.00", quantity=3)
    page = open_page()
    choice = page.get_by_label("Store", exact=True)
    expect(choice.locator("option", has_text=other)).to_have_count(1)
    choice.select_option(other)
    expect_figure(page, "revenue-today", "6.00")
    expect(page.locator(".ticker tbody tr")).to_have_count(1)
    expect(page.locator(".totals tbody tr")).to_have_count(1)
    page.reload()
    expect_figure(page, "revenue-today", "6.00")
    page.get_by_label("Store", exact=True).select_option(store)
    expect_figure(page, "revenue-today", "4.50")
    expect(page.locator(".ticker tbody tr")).to_contain_text([store])


def test_pause_freezes_the_display_and_loses_nothing(
    platform: Platform, open_page: OpenPage, store: str
) -> None:
    platform.post(store, "4.50")
    paused, witness = open_page(store), open_page(store)
    expect_figure(paused, "orders-today", "1")
    paused.get_by_role("button", name="Pause").click()
    platform.post(store, "4.50")
    expect_figure(witness, "orders-today", "2")
    expect_figure(paused, "orders-today", "1")
    expect(paused.get_by_text("Display paused")).to_be_visible()
    paused.get_by_role("button", name="Resume").click()
    expect_figure(paused, "orders-today", "2")


def test_behind_each_chart_stands_a_table_with_its_numbers(
    platform: Platform, open_page: OpenPage, store: str
) -> None:
    for price in ("4.50", "3.20", "2.30"):
        platform.post(store, price)
    page = open_page(store)
    expect_figure(page, "revenue-today", "10.00")
    charts = page.locator("section:has(.chart)")
    expect(charts).to_have_count(3)
    for index, expected in enumerate([10.0, 3.0, 10.0]):
        chart = charts.nth(index)
        expect(chart.get_by_role("img")).to_have_attribute("aria-label", re.compile("table below"))
        chart.locator("summary").click()
        table = chart.locator("details table")
        expect(table).to_be_visible()
        cells = table.locator("tbody tr > td:nth-child(2)").all_text_contents()
        assert sum(map(float, cells)) == pytest.approx(expected)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_both_colour_schemes(
    platform: Platform, open_page: OpenPage, store: str, scheme: str
) -> None:
    platform.post(store, "4.50")
    page = open_page(store, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    expect_figure(page, "orders-today", "1")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(ground.removeprefix("rgb(").split(",")[0])
    assert (red < 64) == (scheme == "dark")
    page.get_by_role("button", name="Switch to").click()
    flipped = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert flipped != ground


def test_no_answer_lets_a_browser_guess_what_it_is(platform: Platform, browser: Browser) -> None:
    page = browser.new_page()
    asked: list[Response] = []
    page.on("response", lambda answer: asked.append(answer))
    page.goto(platform.address)
    expect_live(page)
    request = page.request
    answers = [
        *((each.url, each.status, each.headers) for each in asked),
        *(
            (url, each.status, each.headers)
            for method, url in (
                ("GET", "/api/v1/views"),
                ("GET", "/api/v1/views/none"),
                ("POST", "/api/v1/orders"),
                ("POST", "/api/order"),
                ("PUT", "/api/v1/orders/batch"),
                ("GET", "/api/query/openapi.json"),
                ("GET", "/readyz"),
                ("GET", "/ws"),
                ("GET", "/nowhere"),
            )
            for each in [request.fetch(platform.address + url, method=method)]
        ),
    ]
    page.close()
    assert {status for _, status, _ in answers} >= {200, 404, 405, 415}
    for url, _, headers in answers:
        assert headers.get("x-content-type-options") == "nosniff", url
    [page_headers] = [each.headers for each in asked if each.url == f"{platform.address}/"]
    assert page_headers["x-frame-options"] == "DENY"
    assert page_headers["referrer-policy"] == "no-referrer"
    assert "unsafe" not in page_headers["content-security-policy"]


def test_the_page_is_usable_by_keyboard_and_by_landmarks(
    platform: Platform, open_page: OpenPage, store: str
) -> None:
    platform.post(store, "4.50")
    page = open_page(store)
    expect_live(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Skip to the figures")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    for role in ("banner", "main"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("status")).to_have_text("Live")
    expect(page.get_by_role("region", name="Recent orders", exact=True)).to_be_visible()
