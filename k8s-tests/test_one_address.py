"""Everything answers at one address, by the cluster's ingress controller: the API, and the page in a real browser."""

from __future__ import annotations

import json
from urllib.request import Request, urlopen

import pytest
from kube import wait_until
from playwright.sync_api import Page, expect, sync_playwright
from release import NAME, Release

pytestmark = [pytest.mark.bare, pytest.mark.smoke]

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOST = "shop.example"


def test_an_order_posted_at_the_address_is_seen_in_the_page(shop: Release) -> None:
    shop.upgrade({"ingress": {"enabled": True, "host": HOST}})
    address = wait_until(lambda: _address(shop), "the ingress has an address")
    # The controller answers 404 until it has read the routes.
    wait_until(lambda: _is_routed(address), "the ingress controller knows the routes")
    post = Request(
        f"http://{address}/api/v1/orders?ack=visible",
        data=json.dumps({"store": "by the address", "drink": "mocha", "price": "7.77"}).encode(),
        headers={
            "Host": HOST,
            "Authorization": f"Bearer {shop.api_key}",
            "Content-Type": "application/json",
        },
    )
    with urlopen(post, timeout=30) as answer:
        assert answer.status == 202
    with sync_playwright() as playwright:
        resolver = f"--host-resolver-rules=MAP {HOST} {address}"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, resolver])
        page = browser.new_page()
        page.goto(f"http://{HOST}/")
        _show_key(page, shop.api_key)
        expect(page.get_by_role("cell", name="by the address").first).to_be_visible(timeout=30_000)
        browser.close()
    shop.upgrade({"ingress": {"enabled": False}})


def _is_routed(address: str) -> bool:
    try:
        with urlopen(
            Request(f"http://{address}/livez", headers={"Host": HOST}), timeout=5
        ) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _show_key(page: Page, key: str) -> None:
    """The page asks for it, because the platform does."""
    field = page.get_by_label("API key")
    field.fill(key)
    field.press("Enter")


def _address(release: Release) -> str:
    ingress = release.kube.get("ingress", f"{NAME}-live")
    [*found] = ingress["status"].get("loadBalancer", {}).get("ingress", [])
    return str(found[0].get("ip") or found[0].get("hostname")) if found else ""
