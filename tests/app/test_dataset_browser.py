"""The Dataset screen in headless Chromium: hundreds of pictures, captions of many, automatic captions, findings."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.app.browser import Page, Window, expect, shot
from tests.app.helpers import served

pytestmark = pytest.mark.browser


def many(folder: Path, number: int) -> list[str]:
    """Small pictures, all different."""
    folder.mkdir()
    for i in range(number):
        Image.new("RGB", (96, 64), (i % 256, i // 256, 120)).save(folder / f"p{i:03}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def test_five_hundred_pictures(context: Window, tmp_path: Path) -> None:
    page = context[0].new_page()
    with served(tmp_path / "home") as address:
        page.goto(address)
        expect(page.locator(".t-card")).to_have_count(24)
        began = time.monotonic()
        page.set_input_files("#pictures-input", many(tmp_path / "in", 500))
        expect(page.locator(".t-card")).to_have_count(500)
        expect(page.locator(".t-plan-strip summary")).to_have_text("500 items → 1 bucket → 500 used, 0 left out")
        came = time.monotonic()
        page.locator(".t-caption").nth(400).click()
        page.keyboard.type("the four hundred and first")
        came_back: list[Any] = []
        page.on("response", lambda r: came_back.append(r) if "/run/predict" in r.url else None)
        typed = time.monotonic()
        with page.expect_response("**/run/predict*"):
            page.keyboard.press("Enter")
            page.keyboard.press("Escape")
        expect(page.get_by_text("499 have no caption")).to_be_visible()
        saved = time.monotonic()
        answers = [len(response.body()) for response in came_back]  # read only now: reading waits for the whole body
        print(
            f"\n500 pictures uploaded and checked in {came - began:.1f} s; one caption edited in {saved - came:.1f} s,"
        )
        print(f"{saved - typed:.2f} s of it from Enter to the line that counts it; largest answer {max(answers)} bytes")
        assert saved - came < 10
        assert 0 < max(answers) < 100_000, "of 500 cards only the changed one is sent back"
        began = page.evaluate("performance.now()")
        page.get_by_label("Find in captions").fill("four hundred")
        expect(page.locator(".t-card")).to_have_count(1)
        assert page.evaluate("performance.now()") - began < 6000  # 0.3 s by itself; other tests run beside it
        page.get_by_label("Find in captions").fill("")
        expect(page.locator(".t-card")).to_have_count(500)
        by_keyboard_alone(page)


def by_keyboard_alone(page: Page) -> None:
    """Five hundred cards are one stop of the Tab key; keys select, repeat, leave out and bring back."""
    assert page.locator(".t-cards [tabindex='0']").count() == 3, "look, leave out and caption of one card"
    page.locator(".t-cards .t-look[tabindex='0']").focus()
    page.keyboard.press("End")
    expect(page.get_by_label("Show p499.png")).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Control+a")
    expect(page.get_by_text("500 selected")).to_be_visible()
    page.get_by_role("button", name="Repeats", exact=True).first.press("Enter")
    page.keyboard.type("4")
    page.keyboard.press("Enter")
    expect(page.get_by_text("500 items are now seen 4 × in each epoch.")).to_be_visible()
    expect(page.get_by_title("Seen 4 times in an epoch")).to_have_count(500)
    page.get_by_label("Show p000.png").focus()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Delete")
    expect(page.get_by_label("Show p002.png")).to_be_focused()
    expect(page.locator(".t-card")).to_have_count(499)
    page.get_by_role("button", name="Undo", exact=True).press("Enter")
    expect(page.locator(".t-card")).to_have_count(500)
    page.get_by_label("Show p002.png").focus()
    page.keyboard.press("F2")
    page.keyboard.type("typed")
    page.keyboard.press("Escape")
    expect(page.get_by_text("499 have no caption")).to_be_visible()


def test_captions_findings_and_crop(context: Window, tmp_path: Path) -> None:
    page = context[0].new_page()
    with served(tmp_path / "home", "0.02") as address:
        page.goto(address)
        page.set_input_files("#pictures-input", many(tmp_path / "in", 6))
        expect(page.locator(".t-card")).to_have_count(6)
        caption_all(page)
        change_many(page)
        examine(page)
        select_some(page)
        page.get_by_label("Show p003.png").click()
        expect(page.locator(".t-details")).to_contain_text("9 of 77")
        expect(page.locator(".t-crop")).to_be_visible()
        expect(page.locator(".t-details")).to_contain_text("64 × 64")
        shot(page, "dataset-details")
        page.get_by_role("button", name="Light or dark").click()
        shot(page, "dataset-details-dark")


def caption_all(page: Page) -> None:
    """A job with progress that a reload finds again."""
    page.get_by_role("button", name="Caption automatically").click()
    page.get_by_label("Captioner").select_option("basic")
    page.get_by_role("button", name="Write captions").click()
    expect(page.locator("[data-job]")).to_be_visible()
    page.reload()
    expect(page.get_by_text("6 captions written.")).to_be_visible()
    expect(page.locator(".t-caption").nth(5)).to_have_text("thing 6")
    expect(page.locator(".t-origin[data-origin=auto]")).to_have_count(6)


def change_many(page: Page) -> None:
    """Preview, change, undo, by keyboard."""
    page.get_by_role("button", name="Change many captions").press("Enter")
    page.get_by_label("Find", exact=True).fill("thing")
    page.get_by_label("Replace with").fill("<b>star</b>")
    page.get_by_label("Replace with").press("Enter")
    expect(page.get_by_text("6 captions would change.")).to_be_visible()
    shot(page, "dataset-bulk")
    page.get_by_role("button", name="Change them").press("Enter")
    expect(page.locator(".t-caption").first).to_have_text("<b>star</b> 1")
    page.get_by_role("button", name="Undo change of 6").press("Enter")
    expect(page.locator(".t-caption").first).to_have_text("thing 1")


def select_some(page: Page) -> None:
    """Shift and Ctrl with keys and clicks; what is done to a selection; Escape ends it."""
    page.get_by_label("Show p001.png").focus()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    expect(page.get_by_text("3 selected")).to_be_visible()
    page.get_by_label("Show p005.png").click(modifiers=["ControlOrMeta"])
    expect(page.get_by_text("4 selected")).to_be_visible()
    page.keyboard.press("Control+Space")
    expect(page.get_by_text("3 selected")).to_be_visible()
    shot(page, "dataset-selected")
    page.get_by_label("Show p000.png").click(modifiers=["ControlOrMeta"])
    page.get_by_label("Show p002.png").click(modifiers=["Shift"])
    expect(page.locator(".t-picked")).to_have_count(3)
    page.get_by_role("button", name="Change captions").click()
    page.get_by_label("What to do").select_option("prefix")
    page.get_by_label("Text in front").fill("sks")
    page.get_by_label("Text in front").press("Enter")
    expect(page.get_by_text("3 captions would change.")).to_be_visible()
    page.get_by_role("button", name="Change them").press("Enter")
    expect(page.locator(".t-caption").filter(has_text="sks")).to_have_count(3)
    page.get_by_label("Show p004.png").focus()
    page.keyboard.press("Control+a")
    expect(page.locator(".t-picked")).to_have_count(6)
    page.keyboard.press("Escape")
    expect(page.locator(".t-picked")).to_have_count(0)


def examine(page: Page) -> None:
    """A finding, its remedy, and back."""
    page.get_by_role("button", name="Examine").click()
    expect(page.get_by_text("1 picture is a copy.")).to_be_visible()
    page.get_by_role("button", name="Leave out 1").first.click()
    expect(page.locator(".t-card")).to_have_count(5)
    page.get_by_role("button", name="Undo", exact=True).click()
    expect(page.locator(".t-card")).to_have_count(6)
