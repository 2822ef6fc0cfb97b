"""Library, Publish, System and Help in headless Chromium; publishing against a stand-in of the Hub."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gradio_app.workspace import Workspace
from tests.app.browser import expect, shot, sync_api, tab
from tests.app.fake_hub import GOOD, environment, hub
from tests.app.helpers import served
from tests.app.test_publish import finished_run

Page = sync_api.Page
pytestmark = pytest.mark.browser
WRONG = "hf_wrongTokenWrongToken"


def test_library_publish_system_help(context: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished_run(Workspace(tmp_path / "home").runs / "2026-11-28-cat", tmp_path / "secret-pictures")
    page, asked = context[0].new_page(), []
    page.on("request", lambda one: asked.append(f"{one.url} {one.headers}"))
    with hub() as fake:
        for key, value in environment(fake, "", str(tmp_path / "hf")).items():
            monkeypatch.setenv(key, value)
        with served(tmp_path / "home") as address:
            page.goto(address)
            name_it(page)
            publish_it(page, fake.url)
            assert fake.private == {"me/cat": True}
            read_about(page)
            delete_and_restore(page)
    for token in (GOOD, WRONG):
        assert not [one for one in asked if token in one] and not [url for url in fake.asked if token in url]
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or token.encode() not in path.read_bytes(), path


def name_it(page: Page) -> None:
    """A name with markup stays text."""
    tab(page, "Library")
    expect(page.locator(".t-lib > li")).to_have_count(1)
    page.get_by_label("Name of 2026-11-28-cat").fill("<i>my cat</i>")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Saved.")).to_be_visible()
    shot(page, "library")


def publish_it(page: Page, hub_url: str) -> None:
    """First with a wrong token, then with a good one; it is in no storage of the browser."""
    page.get_by_role("button", name="Publish").click()
    page.locator("#p-repo").fill("me/cat")
    page.locator("#p-look").click()
    expect(page.locator(".t-pub-files li")).to_have_count(3)
    shot(page, "publish")
    page.locator("#p-token").fill(WRONG)
    page.locator("#p-send").click()
    expect(page.get_by_text("does not know this token")).to_be_visible()
    page.locator("#p-again").click()
    page.locator("#p-token").fill(GOOD)
    page.locator("#p-send").click()
    expect(page.get_by_role("link", name=f"{hub_url}/me/cat")).to_be_visible()
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert GOOD not in kept and WRONG not in kept and GOOD not in page.content()
    expect(page).to_have_url(re.compile(r"open=upload%3A"))
    page.reload()
    expect(page.get_by_role("link", name=f"{hub_url}/me/cat")).to_be_visible()


def read_about(page: Page) -> None:
    """System and Help."""
    tab(page, "System")
    expect(page.get_by_text("Free on this disk")).to_be_visible()
    shot(page, "system")
    tab(page, "Help")
    page.locator("#help-find").fill("near shape")
    expect(page.get_by_text("Nothing is said about that here.")).to_be_visible()
    page.locator("#help-find").fill("like shape")
    expect(page.locator(".t-terms dt")).to_have_count(1)
    shot(page, "help")


def delete_and_restore(page: Page) -> None:
    """Into the bin and back."""
    tab(page, "Library")
    page.get_by_role("button", name="Back to the library").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.locator(".t-lib-none")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".t-lib > li")).to_have_count(1)
    expect(page.get_by_label("Name of 2026-11-28-cat")).to_have_value("<i>my cat</i>")
    page.get_by_role("button", name="Delete 2026-11-28-cat").click()
    page.get_by_text("Bin (1)").click()
    page.get_by_role("button", name="Restore 2026-11-28-cat").click()
    expect(page.locator(".t-lib > li")).to_have_count(1)
    page.get_by_role("button", name="Past jobs 2").click()
    page.get_by_role("button", name="Move all to the bin").click()
    page.get_by_role("button", name="Empty the bin …").click()
    expect(page.get_by_text("2 things are deleted for good")).to_be_visible()
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("button", name="Empty the bin …").click()
    page.keyboard.press("Enter")
    expect(page.get_by_text("2 deleted for good,")).to_be_visible()
    expect(page.get_by_text("Bin (0)")).to_be_visible()
    expect(page.locator(".t-lib > li")).to_have_count(1)
