"""Headless Chromium for tests: a watched window (fixture `context`) and what several walks need.

Importing this skips the test module, with a sentence, where there is no playwright or no browser.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if BROWSER is None:
    pytest.skip("no chromium or google-chrome on the PATH", allow_module_level=True)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-default-apps",
]
PATIENCE = 90_000
Page, BrowserContext = sync_api.Page, sync_api.BrowserContext
expect = sync_api.expect
expect.set_options(timeout=PATIENCE)


class Guard:
    """Records and stops every request to another host, and every error of the page."""

    def __init__(self, context: BrowserContext) -> None:
        self.away: list[str] = []
        self.errors: list[str] = []
        context.route("**/*", self._route)
        context.on("weberror", lambda error: self.errors.append(str(error.error)))

    def _route(self, route: sync_api.Route) -> None:
        if urlparse(route.request.url).hostname in ("127.0.0.1", "localhost", None):
            route.continue_()
        else:
            self.away.append(route.request.url)
            route.abort()


Window = tuple[BrowserContext, Guard]


@contextmanager
def watched(**options: object) -> Iterator[Window]:
    """A browser window of 1280×720, or as `options` say; what it asked of other hosts fails the test at its end."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        window = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, **options})
        window.set_default_timeout(PATIENCE)
        guard = Guard(window)
        yield window, guard
        browser.close()
        assert guard.away == [], "these requests would have left the machine"
        assert guard.errors == [], "the page threw these errors"


def tab(page: Page, name: str) -> None:
    """Open a screen."""
    page.get_by_role("tab", name=name).click()


def shot(page: Page, name: str) -> None:
    """A picture for people who ask for it: TUNER_SHOTS=folder pytest ..."""
    if folder := os.environ.get("TUNER_SHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png")
