"""For everyone: axe finds no barrier on any screen, light and dark; 1280×720 and a phone need no sideways scrolling."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.browser import Page, Window, expect, watched
from tests.app.helpers import ROOT, served

pytestmark = pytest.mark.browser
SHOTS = Path(os.environ.get("TUNER_SHOTS") or ROOT / "tests" / "app" / "shots")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
SIDES = "place => { const box = document.querySelector(place).getBoundingClientRect(); return [box.left, box.right]; }"
BEYOND = """() => [...document.querySelectorAll("body *")].map((n) => [n, n.getBoundingClientRect().right])
  .filter(([, right]) => right > innerWidth).slice(0, 12)
  .map(([n, right]) => `${n.tagName} ${n.id} ${n.className.baseVal ?? n.className} ${right}`)"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app with a training that goes on for some minutes, started once for all tests."""
    with served(tmp_path_factory.mktemp("access") / "home", "1.0") as where:
        with watched() as (window, _):
            page = opened(window, where)
            page.get_by_role("tab", name="Recipe").click()
            page.locator("#start").click()
            expect(page.locator(".t-plot polyline.t-line")).to_be_visible()
        yield where


def opened(window: Any, where: str, mode: str = "light") -> Page:
    """The page with its first screen drawn."""
    page = window.new_page()
    page.goto(f"{where}?tab=dataset&__theme={mode}")  # else a page that opens beside a training turns to it
    expect(page.locator(".t-card").first).to_be_visible()
    return page


def screens(page: Page) -> Iterator[str]:
    """Open every screen that there is, one after the other."""
    for name in [tab.inner_text().split("\n")[0].strip() for tab in page.get_by_role("tab").all()]:
        page.get_by_role("tab", name=name).first.click()
        expect(page.get_by_role("tab", name=name).first).to_have_attribute("aria-selected", "true")
        page.wait_for_timeout(1200)
        yield name


def barriers(page: Page) -> list[str]:
    """What axe finds, one line per place."""
    axe = pytest.importorskip("axe_playwright_python.base", reason="axe is not installed (requirements-dev.txt)")
    if not page.evaluate("typeof axe === 'object'"):
        page.evaluate(axe.AXE_SCRIPT)
    found = page.evaluate("rules => axe.run(document, rules)", RULES)["violations"]
    return [f"{v['id']}: {node['html'][:160]} {node['failureSummary'][:200]}" for v in found for node in v["nodes"]]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_screen_is_free_of_barriers_and_fits(context: Window, address: str, mode: str) -> None:
    """axe, the width, and a picture of each screen for people to look at."""
    page = opened(context[0], address, mode)
    problems, seen = [], 0
    for name in screens(page):
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(SHOTS / f"{name.lower()}-{mode}.png"))
        problems += [f"{name} {mode}: {line}" for line in barriers(page)]
        if (wider := page.evaluate(WIDER)) > 0:
            problems.append(f"{name} {mode}: {wider} px wider than the window")
        seen += 1
    assert seen >= 4
    assert problems == []


def test_axe_would_find_something(context: Window, address: str) -> None:
    page = opened(context[0], address)
    page.evaluate(
        "document.querySelector('main, gradio-app').insertAdjacentHTML('beforeend', '<input><img src=\"data:,\">')"
    )
    assert {line.split(":")[0] for line in barriers(page)} >= {"label", "image-alt"}


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_a_phone_can_watch_a_run(address: str, mode: str) -> None:
    """The link with which a run is watched, on a small screen with touch."""
    with watched(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as (window, _):
        page = window.new_page()
        page.goto(f"{address}?tab=train&__theme={mode}")
        expect(page.locator(".t-band")).to_be_visible()
        expect(page.locator(".t-plot polyline.t-line")).to_be_visible()
        expect(page.get_by_role("button", name="Stop and save")).to_be_visible()
        page.wait_for_timeout(500)
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(SHOTS / f"phone-{mode}.png"), full_page=True)
        assert page.evaluate(WIDER) <= 0, page.evaluate(BEYOND)
        for place in (".t-band", ".t-plot"):
            left, right = page.evaluate(SIDES, place)  # in one go: the page draws itself anew each second
            assert left >= 0 and right <= 390, place
        assert barriers(page) == []
