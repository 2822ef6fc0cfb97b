"""Compare in headless Chromium: a foreign adapter, seeds, the wipe by keyboard, a blind test to its verdict."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.app.helpers import served
from tests.app.test_compare_tab import EVIL, foreign_file

pytestmark = pytest.mark.browser
browser = pytest.importorskip("tests.app.browser", reason="playwright or a browser is missing")

expect = browser.expect


def test_compare_to_the_verdict(context: browser.Window, tmp_path: Path) -> None:
    page = context[0].new_page()
    with served(tmp_path / "home", "0.01") as address:
        page.goto(f"{address}?tab=compare")
        page.set_input_files("#c-file-adapters", str(foreign_file(tmp_path / "from elsewhere.safetensors")))
        chip = page.locator(".t-contender", has_text="from-elsewhere")
        expect(chip).to_contain_text("kohya, lora rank 4, for sd1")
        expect(chip).to_contain_text("<b>a path</b>")
        chip.get_by_role("checkbox").check()
        chip.get_by_role("slider").focus()
        page.keyboard.press("ArrowLeft")
        expect(chip.locator("output")).to_have_text("0.95")
        page.locator("#c-prompts").fill(f"cat {EVIL}\ndog")
        page.locator("#c-seed").fill("1, 2")
        page.locator("#c-seed").press("Tab")
        expect(page.get_by_text("8 pictures: 2 prompts, 2 contenders, the same 2 seeds.")).to_be_visible()
        page.locator("#compare-go").click()
        expect(page.locator("#compare .t-matrix img")).to_have_count(8)
        expect(page.locator("#compare .t-matrix tbody th").first).to_contain_text(f"cat {EVIL}")
        wipe = page.locator("#compare .t-wipe-box input[type=range]")
        wipe.focus()
        page.keyboard.press("ArrowLeft")
        expect(wipe).to_have_value("49")
        browser.shot(page, "compare-seeds")
        page.get_by_text("Blind test").first.click()
        page.locator("#c-blind").click()
        for number in range(1, 11):
            expect(page.get_by_role("heading", name=f"Blind test, {number} of 10")).to_be_visible()
            expect(page.locator(".t-trial")).not_to_contain_text("from-elsewhere")
            told = page.locator(".t-trial").evaluate("n => n.outerHTML + JSON.stringify([...n.querySelectorAll('*')]"
                                                     ".map((e) => Object.assign({}, e.dataset)))")  # fmt: skip
            assert not re.search(r"c\d-p\d|elsewhere|Base|strength", told), "the page tells which one it is"
            if number == 1:
                browser.shot(page, "compare-blind")
            page.keyboard.press("ArrowLeft" if number % 2 else "ArrowRight")
        expect(page.locator(".t-verdict")).to_contain_text("4 different pairs were shown")
        page.get_by_role("button", name="Done").click()
        expect(page.locator("#compare .t-matrix img").first).to_be_visible()
        assert page.locator("img[onerror]").count() == 0
