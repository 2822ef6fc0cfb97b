"""The Recipe screen in headless Chromium, by keyboard; nothing leaves the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.app.browser import Page, Window, expect, shot, tab
from tests.app.helpers import served

pytestmark = pytest.mark.browser


def test_the_recipe_by_keyboard(context: Window, tmp_path: Path) -> None:
    """Choose, change, see the problem, press the remedy, put back, export, import."""
    page = context[0].new_page()
    with served(tmp_path / "home", "0.02") as address:
        page.goto(address)
        tab(page, "Recipe")
        choose(page)
        mistake_and_remedy(page)
        settings(page)
        out_and_in(page, tmp_path)
        shot(page, "recipe-light")
        page.locator("#f-adapter-rank").scroll_into_view_if_needed()
        page.get_by_role("button", name="Light or dark").click()
        shot(page, "recipe-dark")


def choose(page: Page) -> None:
    """A goal narrows the shelf, Enter takes a recipe."""
    page.get_by_role("button", name="A voice or music").focus()
    page.keyboard.press("Enter")
    expect(page.locator('[data-recipe="flux1/controlnet.yaml"]')).to_be_hidden()
    page.keyboard.press("Enter")
    page.get_by_label("Find a recipe").fill("flux1-lora")
    page.get_by_label("Find a recipe").fill("FLUX.1 [dev] a person")
    page.keyboard.press("Tab")
    page.locator('[data-recipe="flux1/lora.yaml"]').focus()
    page.keyboard.press("Enter")
    expect(page.locator('[data-recipe="flux1/lora.yaml"]')).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".t-lengths")).to_contain_text("Each picture is seen 62 times")
    page.get_by_label("Find a recipe").fill("")
    expect(page.locator("#recipe .t-why")).to_contain_text("1500 steps is the length")


def mistake_and_remedy(page: Page) -> None:
    """A wrong number is said in red, and a button puts it right."""
    page.get_by_label("Find a setting").fill("rank")
    rank = page.locator("#f-adapter-rank")
    expect(rank).to_be_visible()
    expect(page.locator("#f-train-batch")).to_be_hidden()
    rank.fill("none")
    rank.press("Enter")
    problem = page.locator("#recipe .t-problem.t-error")
    expect(problem).to_contain_text("adapter.rank")
    problem.get_by_role("button", name="Show the setting").press("Enter")
    expect(rank).to_be_focused()
    page.get_by_role("button", name="Back to the recipe's: rank 16").press("Enter")
    expect(rank).to_have_value("16")
    expect(problem).to_have_count(0)


def settings(page: Page) -> None:
    """A kind changes the fields and keeps the focus; a list grows; a change is put back; the plot moves."""
    page.get_by_label("Find a setting").fill("")
    unfold(page, "advanced")
    page.locator("#f-adapter-kind").select_option("lycoris")
    expect(page.locator("#f-adapter-algorithm")).to_be_visible()
    page.locator('[data-field="adapter.kind"] .t-reset').press("Enter")
    expect(page.locator("#f-adapter-algorithm")).to_have_count(0)
    page.locator('[data-field="assistants"]').get_by_role("button", name="Add one").press("Enter")
    expect(page.locator("#f-assistants-0-path")).to_be_visible()
    page.get_by_role("button", name="Remove assistants 1").press("Enter")
    expect(page.locator("#f-assistants-0-path")).to_have_count(0)
    page.locator("#f-train-steps").fill("900")
    page.locator("#f-train-steps").press("Enter")
    unfold(page, "changes")
    change = page.locator('[data-change="train.steps"]')
    expect(change).to_contain_text("1500")
    unfold(page, "expert")
    page.locator("#f-train-timesteps-kind").select_option("uniform")
    expect(page.locator(".t-density figcaption")).to_contain_text("uniform")
    before = page.locator(".t-density polyline").get_attribute("points")
    page.locator("#f-train-shift").fill("3")
    page.locator("#f-train-shift").press("Enter")
    expect(page.locator(".t-density polyline")).not_to_have_attribute("points", before)
    expect(change).to_be_visible()
    change.get_by_role("button").press("Enter")
    expect(page.locator("#f-train-steps")).to_have_value("1500")


def unfold(page: Page, name: str) -> None:
    """Open a drawer, unless it is open."""
    drawer = page.locator(f".t-drawer[data-drawer={name}]")
    if drawer.get_attribute("open") is None:
        drawer.locator("summary").press("Enter")
    expect(drawer).to_have_attribute("open", "")


def out_and_in(page: Page, folder: Path) -> None:
    """The exported file comes back as a recipe of one's own; a wrong one is refused with the reason."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").press("Enter")
    saved = folder / "exported.yaml"
    download.value.save_as(saved)
    text = saved.read_text(encoding="utf-8")
    assert "shift: 3" in text
    bring(page, text.replace("shift: 3", "shoft: 3"))
    expect(page.get_by_role("alert").filter(has_text="Not imported")).to_contain_text("did you mean train.shift")
    bring(page, text.replace("name: flux1-lora", "name: mine"))
    expect(page.get_by_text("Imported, and kept in My recipes.")).to_be_visible()
    expect(page.locator('[data-recipe="own:mine.yaml"]')).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#recipe .t-state")).to_have_text("checked")
    expect(page.get_by_text("Imported, and kept in My recipes.")).to_be_visible()
    page.locator("#f-train-steps").fill("901")
    page.locator("#f-train-steps").press("Enter")
    expect(page.get_by_text("Imported, and kept in My recipes.")).to_be_hidden()


def bring(page: Page, text: str) -> None:
    """Through the import dialogue."""
    page.get_by_role("button", name="Import", exact=True).press("Enter")
    page.locator("#import-text").fill(text)
    page.get_by_role("dialog").get_by_role("button", name="Import", exact=True).press("Enter")
