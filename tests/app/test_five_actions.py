"""From pictures to a checked LoRA in five actions, counted, for the demo and for every family that the app offers."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gradio_app.project import Card, Project
from gradio_app.workspace import Workspace
from tests.app.browser import Page, Window, expect
from tests.app.helpers import served
from tuner.data import video

pytestmark = pytest.mark.browser
CLIPS = {"hunyuan_video15", "kandinsky5_video", "ltx", "ltx2", "wan"}
SOUNDS = {"ace_step"}
QUICK = ("sdxl", "wan", "ace_step")


class Hands:
    """What a user does; every press and every drop counts as one action."""

    def __init__(self, page: Page) -> None:
        self.page, self.actions = page, 0

    def drop(self, files: list[str]) -> None:
        """Files into the data set."""
        self.actions += 1
        self.page.set_input_files("#pictures-input", files)
        expect(self.page.locator(".t-card")).to_have_count(len(files))

    def press(self, what: Any) -> None:
        """A button, once it can be pressed."""
        self.actions += 1
        expect(what).to_be_enabled()
        what.click()


def material(folder: Path, family: str) -> list[str]:
    """Three items of the kind that the family learns from."""
    folder.mkdir()
    for i in range(3):
        if family in CLIPS:
            frames = np.full((9, 64, 64, 3), 60 * i, np.uint8)
            frames[:, :, : 8 * (i + 1)] = 250
            video.write(folder / f"{i}.mp4", frames, 24.0)
        elif family in SOUNDS:
            _sound(folder / f"{i}.wav", 300 * (i + 1))
        else:
            Image.new("RGB", (64, 64), (80 * i, 90, 120)).save(folder / f"{i}.png")
    return [str(path) for path in sorted(folder.iterdir())]


def _sound(path: Path, pitch: int) -> None:
    tone = np.sin(np.arange(16000) / 16000 * 2 * np.pi * pitch) * 9000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(tone.astype("<i2").tobytes())


def offered(folder: Path) -> dict[str, Card]:
    """The first LoRA recipe of each family that makes things from text."""
    cards = Project(Workspace(folder)).cards()
    plain = [c for c in cards if c.task == "generate" and c.kind == "lora" and c.group != "demo"]
    return {c.family: c for c in reversed(plain)}


def made(hands: Hands, files: list[str], card: str) -> None:
    """Drop, choose, choose, start, take the file: its badge says where it loads."""
    page = hands.page
    hands.drop(files)
    hands.press(page.get_by_role("button", name="Choose a recipe"))
    hands.press(page.locator(f'[data-recipe="{card}"]'))
    expect(page.locator(f'[data-recipe="{card}"]')).to_have_attribute("aria-pressed", "true")
    hands.press(page.locator("#start"))
    expect(page.locator(".t-band[data-state=finished]")).to_be_visible()
    expect(page.get_by_text("Loads in diffusers")).to_be_visible()
    with page.expect_download() as fetched:
        hands.press(page.get_by_role("link", name="Download").first)
    assert Path(fetched.value.path()).stat().st_size > 0
    assert hands.actions == 5


@pytest.mark.parametrize("family", QUICK)
def test_five_actions(family: str, context: Window, tmp_path: Path) -> None:
    """Pictures, clips and sounds of one's own."""
    card = offered(tmp_path / "other")[family]
    with served(tmp_path / "home", "0.0") as address:
        page = context[0].new_page()
        page.goto(address)
        expect(page.locator(".t-card")).to_have_count(24)
        made(Hands(page), material(tmp_path / "in", family), card.id)


@pytest.mark.slow
def test_five_actions_for_every_family(context: Window, tmp_path: Path) -> None:
    """The same for all, each in a fresh workspace."""
    cards = offered(tmp_path / "other")
    assert len(cards) >= 26
    for family, card in cards.items():
        (tmp_path / family).mkdir()
        with served(tmp_path / family / "home", "0.0") as address:
            page = context[0].new_page()
            page.goto(address)
            expect(page.locator(".t-card")).to_have_count(24)
            made(Hands(page), material(tmp_path / family / "in", family), card.id)
            page.close()
            print(f"{family}: 5 actions with {card.id}")
