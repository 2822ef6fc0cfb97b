"""Masks and pairs in headless Chromium: painted by mouse and by keyboard, automatic, shown as the loss sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.app.browser import Page, Window, expect, shot
from tests.app.helpers import served
from tests.app.test_dataset_browser import many

pytestmark = pytest.mark.browser


def test_masks_and_pairs(context: Window, tmp_path: Path) -> None:
    page = context[0].new_page()
    home = tmp_path / "home"
    with served(home) as address:
        page.goto(address)
        expect(page.locator(".t-card")).to_have_count(24)
        page.set_input_files("#pictures-input", many(tmp_path / "in", 4))
        expect(page.locator(".t-card")).to_have_count(4)
        by_mouse(page)
        by_keyboard(page, home / "datasets" / ".companions" / "my-pictures" / "mask" / "p001.png")
        of_people(page)
        pairs(page, tmp_path)
        page.get_by_role("button", name="Light or dark").click()
        shot(page, "dataset-masks-dark")


def by_mouse(page: Page) -> None:
    """A stroke over the left half; the mask as the loss sees it."""
    page.get_by_label("Show p000.png").click()
    page.get_by_label("Paint the mask of p000.png").click()
    canvas = page.locator("canvas.t-mask-canvas")
    expect(canvas).to_be_focused()
    canvas.hover(position={"x": 40, "y": 40})
    page.mouse.down()
    canvas.hover(position={"x": 40, "y": 200})
    page.mouse.up()
    expect(page.get_by_role("status").filter(has_text="% counts")).not_to_have_text("0 % counts")
    shot(page, "dataset-paint")
    page.get_by_role("button", name="Save mask").click()
    expect(page.get_by_text("Mask of p000.png saved.")).to_be_visible()
    expect(page.locator(".t-masked")).to_have_count(1)
    expect(page.locator(".t-cells")).to_be_visible()
    expect(page.locator("figcaption").filter(has_text="As the loss sees it: 8 × 8 cells")).to_be_visible()


def by_keyboard(page: Page, saved: Path) -> None:
    """Without a mouse: all, then the middle erased, one step back and again, saved."""
    page.get_by_label("Show p001.png").press("Enter")
    page.get_by_label("Paint the mask of p001.png").press("Enter")
    canvas = page.locator("canvas.t-mask-canvas")
    expect(canvas).to_be_focused()
    page.get_by_role("button", name="All", exact=True).press("Enter")
    canvas.focus()
    page.keyboard.press("e")
    expect(page.get_by_role("button", name="Eraser")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("]")
    expect(page.get_by_label("Size of the brush")).to_have_value("72")
    page.keyboard.press("Space")
    page.keyboard.press("Control+z")
    expect(page.get_by_role("status").filter(has_text="100 % counts")).to_be_visible()
    page.keyboard.press("Space")
    page.get_by_role("button", name="Save mask").press("Enter")
    expect(page.get_by_text("Mask of p001.png saved.")).to_be_visible()
    with Image.open(saved) as mask:
        assert mask.size == (96, 64) and mask.getpixel((48, 32)) == 0 and mask.getpixel((4, 4)) == 255


def of_people(page: Page) -> None:
    """A job for all that have none; painted masks stay, the rest counts whole."""
    page.get_by_role("button", name="Masks").click()
    shot(page, "dataset-masks")
    page.get_by_role("button", name="Find people in all pictures").click()
    expect(page.get_by_text("No person was found in 1")).to_be_visible()
    expect(page.locator(".t-masked")).to_have_count(3)
    page.get_by_role("button", name="Masks").press("Enter")
    page.get_by_role("button", name="Let the other 1 count whole").press("Enter")
    expect(page.locator(".t-masked")).to_have_count(4)


def pairs(page: Page, tmp_path: Path) -> None:
    """Control pictures by upload, beside their targets; one has none and is marked."""
    edges = tmp_path / "edges"
    edges.mkdir()
    for i in range(3):
        Image.new("RGB", (96, 64), "black").save(edges / f"p{i:03}.png")
    page.get_by_role("button", name="Pairs").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload control pictures").click()
    chooser.value.set_files([str(path) for path in sorted(edges.iterdir())])
    expect(page.get_by_text("3 control pictures added.")).to_be_visible()
    expect(page.get_by_label("Pair")).to_contain_text("What is learned")
    page.get_by_role("button", name="No pair 1").click()
    expect(page.locator(".t-card")).to_have_count(1)
    page.get_by_role("button", name="All 4").click()
    expect(page.locator(".t-card")).to_have_count(4)
    page.locator(".t-details").evaluate("side => { side.scrollTop = side.scrollHeight }")
    shot(page, "dataset-pairs")
