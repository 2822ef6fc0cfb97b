"""The Train screen in headless Chromium over a run that the test itself pretends to be: clips, sounds, plot, phone."""

from __future__ import annotations

import math
import os
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml

from tests.app.browser import Page, Window, expect, shot
from tests.app.helpers import served
from tuner import events

pytestmark = pytest.mark.browser
LOADED = "[...document.querySelectorAll('WHERE video, WHERE audio')].every(m => m.readyState >= 1 && m.duration > 0.2)"


class Pretended:
    """A run that is alive as long as this test: the journal names our own process."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "runs" / "2026-01-02-clips"
        (self.folder / "samples").mkdir(parents=True)
        recipe = {"name": "clips", "family": "wan", "train": {"batch": 2, "accumulate": 1}, "save": {"every": 20}}
        validate = {"every": 20, "prompts": ["a cat that dances, seen from the left", "a bell"]}
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "validate": validate}))
        self.journal, self.at = events.Journal(self.folder / "events.jsonl"), 0
        me = os.getpid()
        self.journal("started", pid=me, born=events.birth(me), from_step=0, steps=200, name="clips", family="wan",
                     device="NVIDIA H100", precision="bf16")  # fmt: skip
        self.journal("planned", items=40, left_out=3, held=4, per_epoch=20)
        self.samples(0)

    def samples(self, step: int) -> None:
        """A clip and a sound of this step."""
        clip, sound = f"samples/{step:03d}-0.mp4", f"samples/{step:03d}-1.wav"
        moving(self.folder / clip, step)
        ringing(self.folder / sound, 300 + 4 * step)
        prompts = ("a cat that dances, seen from the left", "a bell")
        files = [{"prompt": p, "file": f, "seed": 0} for p, f in zip(prompts, (clip, sound), strict=True)]
        self.journal("validation", step=step, loss=0.9 - step / 400, by_t={"0.1": 0.4, "0.9": 0.2})
        self.journal("sample", step=step, files=files)

    def learn(self, steps: int) -> None:
        """Some more steps."""
        memory = {"used": 13_200_000_000, "peak": 19_900_000_000, "of": 24_000_000_000}
        for _ in range(steps):
            self.at += 1
            loss = 0.02 + math.exp(-self.at / 15)
            said: dict[str, Any] = {"loss": loss, "lr": 1e-4, "lr_text": 2e-5, "norm": 0.3, "seconds": 0.8}
            self.journal("step", step=self.at, of=200, memory=memory, **said)
            if self.at % 20 == 0:
                self.journal("checkpoint", step=self.at, path=f"checkpoints/step-{self.at:06d}")
                self.samples(self.at)

    def end(self) -> None:
        """Exported: one file that loads, one that does not."""
        files = []
        for format, readers, problems in (
            ("diffusers", ["diffusers"], []),
            ("comfyui", ["ComfyUI"], []),
            ("kohya", [], ["1 key is unknown to kohya: <b>x</b>"]),
        ):
            path = self.folder / "export" / format / "clips.safetensors"
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x")
            told = {"path": str(path.relative_to(self.folder)), "format": format}
            files.append({**told, "loads_in": readers, "problems": problems})
        self.journal("phase", name="export", done=0, of=0)
        self.journal("export", path=files[0]["path"], verified=False, files=files)
        self.journal("finished", step=self.at, seconds=160.0)


def moving(path: Path, step: int) -> None:
    """A second of a grey square that moves."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(8):
            frame = np.full((64, 64, 3), 40, dtype=np.uint8)
            frame[8 * i : 8 * i + 8, :, :] = 60 + step
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())


def ringing(path: Path, pitch: int) -> None:
    """Half a second of a tone."""
    tone = (12_000 * np.sin(np.arange(4000) * 2 * np.pi * pitch / 8000)).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(tone.tobytes())


def test_clips_sounds_and_plot_of_a_run_that_goes_on(context: Window, tmp_path: Path) -> None:
    """Players load; they, the plot and the focus outlive what is new; a step is read by keys and mouse."""
    run = Pretended(tmp_path / "home")
    run.learn(45)
    with served(tmp_path / "home") as address:
        page = context[0].new_page()
        page.goto(f"{address}?tab=train")
        expect(page.locator(".t-band h2")).to_have_text("Training, step 45 of 200")
        players(page)
        reading(page)
        staying(page, run)
        shot(page, "train-clips")
        page.reload()
        expect(page.get_by_role("button", name="Log scale")).to_have_attribute("aria-pressed", "true")
        phone(context[0].browser, address)
        ended(page, run)


def players(page: Page) -> None:
    """A clip and a sound in each cell, with names and controls; two clips play together."""
    cells = page.locator("#train .t-player")
    expect(cells).to_have_count(6)
    page.wait_for_function(LOADED.replace("WHERE", "#train"))
    assert page.locator("#train video[controls]").count() == page.locator("#train audio[controls]").count() == 3
    labels = [node.get_attribute("aria-label") for node in page.locator("#train video, #train audio").all()]
    assert "a cat that dances, seen from the left, before" in labels and "a bell, step 40" in labels
    page.get_by_role("button", name="a cat that dances, seen from the left, step 40: compare").click()
    expect(page.locator(".t-modal .t-together video")).to_have_count(2)
    page.wait_for_function(LOADED.replace("WHERE", ".t-modal"))
    page.get_by_role("button", name="Play both").click()
    page.wait_for_function("[...document.querySelectorAll('.t-modal video')].every(v => v.currentTime > 0)")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="a bell, step 20: compare").click()
    expect(page.locator(".t-modal").get_by_role("button", name="B: step 20")).to_be_visible()
    page.locator(".t-modal").get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("""() => { window.heard = [...document.querySelectorAll('.t-modal audio')];
        return heard.length === 2 && heard.every((p) => p.currentTime > 0); }""")
    page.evaluate("window.heard.forEach((p) => { p.loop = true; p.play(); })")
    page.keyboard.press("Escape")
    expect(page.locator(".t-modal")).to_have_count(0)
    assert page.evaluate("window.heard.map((p) => p.paused)") == [True, True], "sound stops with its window"


def reading(page: Page) -> None:
    """The plot by keyboard and mouse, and on a logarithmic scale."""
    plot = page.get_by_role("slider", name="Loss by step")
    plot.focus()
    page.keyboard.press("Home")
    expect(plot).to_have_attribute(
        "aria-valuetext", "step 1, loss 0.956, learning rate 0.0001, validation loss 0.9, step 0"
    )
    page.keyboard.press("ArrowRight")
    expect(page.locator(".t-tip")).to_contain_text("step 2")
    page.keyboard.press("Escape")
    expect(page.locator(".t-tip")).to_have_count(0)
    plot.hover(position={"x": 60, "y": 60})
    expect(page.locator(".t-tip")).to_contain_text("learning rate 0.0001")
    before = page.locator(".t-line").get_attribute("points")
    page.get_by_role("button", name="Log scale").click()
    expect(page.locator(".t-line")).not_to_have_attribute("points", before or "")
    sizes = page.evaluate(
        "[...document.querySelectorAll('.t-tick')].map(t => parseFloat(getComputedStyle(t).fontSize))"
    )
    assert min(sizes) >= 12


def staying(page: Page, run: Pretended) -> None:
    """What is new comes into the elements that are there."""
    facts = page.locator(".t-facts")
    expect(facts).to_contain_text("Skipped")
    expect(facts).to_contain_text("Learning rate, text")
    meter = page.get_by_role("meter", name="GPU memory")
    expect(meter).to_have_attribute("aria-valuetext", "13.2 GB of 24.0 GB, at most 19.9 GB")
    page.get_by_role("button", name="Save now").focus()
    page.evaluate("""window.there = ['.t-plot', '.t-line', '.t-band h2', '[data-do=stop]', '[data-do=save]',
        '#train video', '#train audio', '.t-matrix', '.t-meter', '#train select', '.t-log']
        .map(s => document.querySelector(s));
        document.querySelector('.t-log').open = true""")
    run.learn(20)
    expect(page.locator(".t-band h2")).to_have_text("Training, step 65 of 200")
    expect(page.locator("#train .t-player")).to_have_count(8)
    assert page.evaluate("window.there.map(n => n !== null && n.isConnected)") == [True] * 11
    expect(page.get_by_role("button", name="Save now")).to_be_focused()
    assert page.evaluate("document.querySelector('.t-log').open")
    expect(page.locator(".t-numbers")).to_contain_text("Time left")


def phone(browser: Any, address: str) -> None:
    """Text that can be read, prompts on lines of their own, nothing beside the screen."""
    with browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True) as window:
        page = window.new_page()
        page.goto(f"{address}?tab=train")
        expect(page.locator(".t-line")).to_be_visible()
        page.wait_for_function("document.querySelector('.t-plot').getBoundingClientRect().width > 250")
        wide = page.evaluate("""() => { const box = s => document.querySelector(s).getBoundingClientRect();
            return {plot: box('.t-plot'), prompt: box('.t-matrix tbody th'), cell: box('.t-matrix td'),
                    page: document.documentElement.scrollWidth}; }""")
        shot(page, "train-phone")
        assert wide["page"] <= 390 and wide["plot"]["right"] <= 390
        assert wide["prompt"]["width"] > 250 and wide["prompt"]["bottom"] <= wide["cell"]["top"] + 1


def ended(page: Page, run: Pretended) -> None:
    """Each file says where it loads, or what is wrong with it."""
    run.end()
    expect(page.locator(".t-exports li")).to_have_count(3)
    expect(page.locator(".t-exports")).to_contain_text("loads in ComfyUI")
    expect(page.locator(".t-wrong")).to_have_text(
        "Does not load as it was trained: 1 key is unknown to kohya: <b>x</b>"
    )
    assert page.evaluate("fetch(document.querySelector('.t-exports a').href).then(r => r.status)") == 200
    shot(page, "train-ended")


def test_the_tab_shows_that_a_run_failed(context: Window, tmp_path: Path) -> None:
    """A mark that can be seen from every screen, with words."""
    run = Pretended(tmp_path / "home")
    run.journal("failed", error="Memory ran out.", user=True)
    with served(tmp_path / "home") as address:
        page = context[0].new_page()
        page.goto(f"{address}?tab=dataset")
        expect(page.get_by_role("tab", name="Train")).to_have_attribute("data-mark", "bad")
        expect(page.get_by_role("tab", name="Train")).to_have_attribute("title", "The last run failed")
