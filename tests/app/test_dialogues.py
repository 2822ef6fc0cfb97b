"""Every dialogue and drawer of the Dataset and Recipe screens: no barrier in light and dark, and odd data sets fit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.app.browser import Page, Window, expect, tab
from tests.app.helpers import served
from tests.app.test_access import SHOTS, WIDER, barriers

pytestmark = [pytest.mark.browser, pytest.mark.long]
ODD = {
    "wide.png": ((4000, 60), "שלום עולם, صورة حمراء طويلة"),
    "tall.png": ((50, 3000), "word " * 1000),
    "tiny.png": ((20, 20), "🌈👩‍👩‍👧‍👦 赤い帯 красная"),
    "b <b>bold<b> & 'q'.png": ((96, 64), "<script>document.title = 'gone'</script>"),
    "plain.png": ((96, 64), ""),
    "twice.png": ((96, 64), "one\nbelow the other"),
}


def odd(folder: Path) -> list[str]:
    folder.mkdir()
    for number, (name, (size, text)) in enumerate(ODD.items()):
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize(size).save(folder / name)
        if text:
            (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    return [str(path) for path in sorted(folder.iterdir())]


def test_dialogues_and_drawers_in_both_modes(context: Window, tmp_path: Path) -> None:
    page = context[0].new_page()
    problems: list[str] = []
    with served(tmp_path / "home") as address:
        page.goto(f"{address}?__theme=light")
        expect(page.locator(".t-card")).to_have_count(24)
        page.set_input_files("#pictures-input", odd(tmp_path / "in"))
        expect(page.locator(".t-card")).to_have_count(6)
        expect(page.locator(".t-plan-strip summary")).to_be_visible()
        assert page.title() != "gone"
        for mode in ("light", "dark"):
            page.evaluate("dark => Tuner.dark(dark)", mode == "dark")
            for name in chain(dataset(page), recipe(page)):
                page.wait_for_timeout(300)
                SHOTS.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=str(SHOTS / f"{name}-{mode}.png"))
                problems += [f"{name} {mode}: {line}" for line in barriers(page)]
                if (wider := page.evaluate(WIDER)) > 0:
                    problems.append(f"{name} {mode}: {wider} px wider than the window")
    assert problems == []


def dataset(page: Page) -> Iterator[str]:
    """Open each dialogue, the details, a selection, the findings and the plan."""
    tab(page, "Dataset")
    page.get_by_label("Show plain.png", exact=True).press("Enter")
    expect(page.locator(".t-details")).to_contain_text("96 × 64")
    page.get_by_label("Show plain.png", exact=True).press("Shift+ArrowRight")
    expect(page.get_by_text("2 selected")).to_be_visible()
    page.locator(".t-plan-strip summary").press("Enter")
    yield "dataset-selection"
    for button, name in {
        "Repeats": "repeats",
        "Caption automatically": "captioner",
        "Change captions": "bulk",
        "Masks": "masks",
        "Pairs": "pairs",
        "Folder": "folder",
        "New": "new-set",
        "Paint": "paint",
    }.items():
        page.get_by_role("button", name=button).first.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        if name == "bulk":
            page.get_by_label("Find", exact=True).fill("o")
            page.get_by_label("Find", exact=True).press("Enter")
            expect(page.locator(".t-preview")).to_contain_text("would change")
        yield f"dialogue-{name}"
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Examine", exact=True).press("Enter")
    expect(page.locator(".t-finding").first).to_be_visible()
    yield "dataset-findings"
    page.locator("aside .t-details-head button").press("Enter")
    page.get_by_role("button", name="Clear", exact=True).press("Enter")
    page.locator(".t-plan-strip summary").press("Enter")


def recipe(page: Page) -> Iterator[str]:
    """Every drawer open, something changed, a mistake, the YAML, the import."""
    tab(page, "Recipe")
    drawers = ("advanced", "expert", "yaml")
    for name in drawers:
        fold(page, name)
    page.locator("#f-adapter-rank").fill("none")
    page.locator("#f-adapter-rank").press("Enter")
    expect(page.locator("#recipe .t-problem.t-error").first).to_be_visible()
    fold(page, "changes")
    for name in (*drawers, "changes"):
        page.locator(f"[data-drawer={name}] > summary").scroll_into_view_if_needed()
        yield f"recipe-{name}"
    page.get_by_role("button", name="Import", exact=True).press("Enter")
    yield "dialogue-import"
    page.keyboard.press("Escape")
    page.locator('[data-change="adapter.rank"] button').press("Enter")
    expect(page.locator("#f-adapter-rank")).to_have_value("16")
    for name in drawers:
        fold(page, name)


def fold(page: Page, name: str) -> None:
    """Open or close a drawer."""
    page.locator(f"[data-drawer={name}] > summary").press("Enter")
