"""The whole walk in headless Chromium. Every request that would leave this machine fails the test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.browser import BrowserContext, Page, Window, expect, shot, tab
from tests.app.helpers import free_port, served
from tuner import home

pytestmark = pytest.mark.browser
BASE = home.package_recipes() / "demo" / "base"


def walk(window: BrowserContext, address: str, pictures: Path, caption: str) -> None:
    """Upload, caption, choose, train, reload, stop, compare."""
    page = window.new_page()
    page.goto(address)
    upload_and_caption(page, pictures, caption)
    choose(page, 400)
    page.locator("#start").click()
    watch(page)
    reload(page)
    stop_and_compare(page)


def upload_and_caption(page: Page, pictures: Path, caption: str) -> None:
    """Five pictures of one's own; a caption with markup stays text; Enter goes on, Esc leaves."""
    expect(page.locator(".t-card")).to_have_count(24)
    expect(page.locator(".t-drop-veil")).to_be_hidden()
    page.set_input_files("#pictures-input", [str(path) for path in sorted(pictures.iterdir())])
    expect(page.locator(".t-card")).to_have_count(5)
    expect(page.get_by_text("5 pictures added.")).to_be_visible()
    page.locator(".t-caption").first.click()
    page.keyboard.type(caption)
    page.keyboard.press("Enter")
    page.keyboard.type("a second one")
    page.keyboard.press("Escape")
    expect(page.locator(".t-caption").first).to_have_text(caption)
    expect(page.locator(".t-caption").nth(1)).to_have_text("Write a caption")
    expect(page.get_by_text("4 have no caption: write one")).to_be_visible()
    page.get_by_label("Trigger word").fill("sks")
    page.get_by_label("Trigger word").press("Enter")
    expect(page.get_by_text("trained with the trigger word alone")).to_be_visible()
    shot(page, "dataset")


def choose(page: Page, steps: int) -> None:
    """The demo recipe with other numbers; the engine has looked at it."""
    page.get_by_role("button", name="Choose a recipe").click()
    page.locator(".t-recipe").filter(has_text="Demo style").click()
    page.locator("#f-train-steps").fill(str(steps))
    page.locator("#f-validate-prompts").fill("rocket, high contrast style")
    page.locator(".t-drawer[data-drawer=advanced] summary").click()
    page.locator("#f-validate-every").fill("5")
    page.locator("#f-validate-steps").fill("4")
    page.locator("#f-validate-steps").press("Tab")
    expect(page.locator("#recipe .t-state.t-ok")).to_be_visible()
    shot(page, "recipe")


def watch(page: Page) -> None:
    """Loss and samples appear."""
    expect(page.locator(".t-band")).to_be_visible()
    expect(page.locator(".t-plot polyline.t-line")).to_be_visible()
    expect(page.locator(".t-matrix img").first).to_be_visible()
    expect(page.locator(".t-matrix thead th").nth(2)).to_have_text("step 5")
    shot(page, "train")


def reload(page: Page) -> None:
    """The page comes back to the same run, and so does a new one without a link."""
    run = page.locator("#train select").input_value()
    assert f"run={run}" in page.url and "tab=train" in page.url
    page.reload()
    expect(page.locator(".t-band[data-state=running]")).to_be_visible()
    expect(page.locator(".t-plot polyline.t-line")).to_be_visible()
    again = page.context.new_page()
    again.goto(page.url.split("?")[0])
    expect(again.locator("#train select")).to_have_value(run)
    again.close()


def stop_and_compare(page: Page) -> None:
    """What was learned so far, beside the base."""
    page.get_by_role("button", name="Stop and save").click()
    expect(page.locator(".t-band[data-state=stopped]")).to_be_visible()
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()
    page.locator("#train-next").click()
    expect(page.locator(".t-contender:not(.t-step)")).to_have_count(2)
    page.locator("#c-prompts").fill("rocket, high contrast style")
    page.locator("#c-steps").fill("4")
    page.locator("#compare-go").click()
    expect(page.locator("#compare .t-matrix img")).to_have_count(2)
    wipe = page.locator("#compare .t-wipe-box input[type=range]")
    wipe.focus()
    page.keyboard.press("ArrowLeft")
    expect(wipe).to_have_value("49")
    shot(page, "compare")


def test_the_walk(context: Window, pictures: Path, tmp_path: Path) -> None:
    """With the fake engine: the app alone, in seconds."""
    with served(tmp_path / "home", "0.05") as address:
        walk(context[0], address, pictures, "a <b>bold</b> square")


@pytest.mark.long
@pytest.mark.skipif(not (BASE / "model_index.json").exists(), reason="the demo's base model is not in this checkout")
def test_the_walk_with_the_real_engine(context: Window, pictures: Path, tmp_path: Path) -> None:
    """Five pictures, the demo recipe, a real LoRA."""
    with served(tmp_path / "home", "real") as address:
        walk(context[0], address, pictures, "red square")


def test_the_app_may_end_and_come_back(context: Window, tmp_path: Path) -> None:
    """A run outlives the app; the open page finds app and run again."""
    page = context[0].new_page()
    port = free_port()
    with served(tmp_path / "home", "0.05", port) as address:
        page.goto(address)
        tab(page, "Train")
        page.locator("#train-next").click()
        expect(page.locator(".t-band[data-state=running]")).to_be_visible()
        expect(page.locator(".t-plot polyline.t-line")).to_be_visible()
    with served(tmp_path / "home", "0.05", port):
        expect(page.locator(".t-band")).to_be_visible()
        page.goto(f"{address}?tab=train")
        expect(page.locator(".t-plot polyline.t-line")).to_be_visible()
        page.get_by_role("button", name="Stop and save").click()
        expect(page.locator(".t-band[data-state=stopped]")).to_be_visible()


def test_dark_and_keyboard(context: Window, tmp_path: Path) -> None:
    """The theme is kept over a reload; arrow keys move between screens."""
    page = context[0].new_page()
    with served(tmp_path / "home") as address:
        page.goto(address)
        page.get_by_role("button", name="Light or dark").click()
        expect(page.locator("body")).to_have_class("dark")
        page.reload()
        expect(page.locator("body")).to_have_class("dark")
        expect(page.locator(".t-card")).to_have_count(24)
        page.get_by_role("tab", name="Dataset").focus()
        page.keyboard.press("ArrowRight")
        expect(page.locator("#recipe .t-form")).to_be_visible()
