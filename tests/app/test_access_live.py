"""axe and a picture, light and dark, of what opens on Train and Compare: dialogs, players, tests, failures, queue."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gradio_app.workspace import Workspace
from tests.app.browser import Page, Window, expect, tab
from tests.app.fake_engine import FAILURES, picture, samples
from tests.app.helpers import served
from tests.app.test_access import SHOTS, WIDER, barriers
from tests.app.test_browser_media import clip, comparison, tone
from tests.app.test_train_browser import Pretended
from tuner.events import Journal

pytestmark = [pytest.mark.browser, pytest.mark.long]
DARK = "dark => document.body.classList.toggle('dark', dark)"


def finished(place: Workspace) -> str:
    """A run of pictures that is done and can be made longer."""
    folder = place.new_run("pictures")
    recipe = {"name": "pictures", "family": "flux1", "train": {"schedule": "constant", "steps": 20, "batch": 1},
              "validate": {"every": 10, "prompts": ["a cat", "a dog"]}, "adapter": {"kind": "lora"}}  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    journal = Journal(folder / "events.jsonl")
    journal("started", pid=1, born=0.0, from_step=0, steps=20, family="flux1", device="cpu")
    for step in (0, 10, 20):
        samples(folder, journal, recipe, step, 20)
        journal("step", step=max(1, step), of=20, loss=1 / (step + 1), lr=1e-4, seconds=0.1)
    journal("checkpoint", step=20, path="checkpoints/step-000020")
    (folder / "checkpoints" / "step-000020").mkdir(parents=True)
    journal("finished", step=20, seconds=2.0)
    return folder.name


def failed(place: Workspace) -> str:
    """A run whose memory ran out."""
    folder = place.new_run("failed")
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "failed", "family": "flux1", "train": {"batch": 4}}))
    journal = Journal(folder / "events.jsonl")
    journal("started", pid=1, born=0.0, from_step=0, steps=20, family="flux1", device="cpu")
    journal("phase", name="train", done=0, of=20)
    journal("failed", error=FAILURES["memory"][0], user=False)
    return folder.name


def waiting(place: Workspace) -> None:
    """Two runs in the queue, behind one that our own process pretends to be."""
    names = [place.new_run(name).name for name in ("first", "second")]
    for name in names:
        (place.runs / name / "recipe.yaml").write_text("name: waits\nfamily: flux1\n")
    (place.root / "queue.json").write_text(json.dumps([{"run": name, "do": "run", "steps": 0} for name in names]))


def compared(place: Workspace) -> None:
    """Comparisons of pictures with one that could not be drawn, of clips and of sounds."""
    for kind in ("pictures", "clips", "sounds"):
        (place.compare / kind).mkdir(parents=True)
    for i in (0, 1):
        picture(place.compare / "pictures" / f"c{i}.png", i, i / 2)
        clip(place.compare / "clips" / f"c{i}.mp4", 40 * i)
        tone(place.compare / "sounds" / f"c{i}.wav", 0.2 + 0.2 * i)
    for kind, ending in (("sounds", "wav"), ("clips", "mp4"), ("pictures", "png")):
        comparison(place.compare / kind, [f"c0.{ending}", f"c1.{ending}"])
    folder = place.compare / "pictures"
    asked = yaml.safe_load((folder / "request.yaml").read_text())
    asked["contenders"].append({"label": "broken", "adapter": "/x/broken.safetensors", "strength": 0.5})
    (folder / "request.yaml").write_text(yaml.safe_dump(asked))
    Journal(folder / "events.jsonl")("refused", contender=2, text="/x/broken.safetensors does not fit FLUX.1.")
    Journal(folder / "events.jsonl")("finished", seconds=1.0)


def test_whatever_opens_is_free_of_barriers(context: Window, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "home")
    done, broken = finished(place), failed(place)
    compared(place)
    run = Pretended(tmp_path / "home")
    run.learn(45)
    waiting(place)
    problems: list[str] = []
    with served(tmp_path / "home", "0.01") as address:
        page = context[0].new_page()

        def look(name: str) -> None:
            for dark in (False, True):
                page.evaluate(DARK, dark)
                page.wait_for_timeout(250)
                SHOTS.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=str(SHOTS / f"{name}-{'dark' if dark else 'light'}.png"))
                problems.extend(f"{name} {'dark' if dark else 'light'}: {line}" for line in barriers(page))
            page.evaluate(DARK, False)
            if (wider := page.evaluate(WIDER)) > 0:
                problems.append(f"{name}: {wider} px wider than the window")

        page.goto(f"{address}?tab=train&run={run.folder.name}")
        expect(page.locator(".t-queue li")).to_have_count(2)
        look("live-queue")
        dialogs(page, look)
        for name, text in ((done, "Extend"), (broken, "Turn on checkpointing")):
            page.locator("#train select").select_option(name)
            expect(page.get_by_role("button", name=text)).to_be_visible()
            look(f"train-{text.split()[0].lower()}")
        page.get_by_text("Log", exact=True).click()
        look("train-log")
        tab(page, "Compare")
        boards(page, look)
    assert problems == []


def dialogs(page: Page, look: Callable[[str], None]) -> None:
    """The windows of a clip and of a sound."""
    for name, kind in (("a cat that dances, seen from the left, step 40: compare", "clips"),
                       ("a bell, step 40: compare", "sounds")):  # fmt: skip
        page.get_by_role("button", name=name).click()
        expect(page.locator(".t-modal")).to_be_visible()
        expect(page.locator(".t-modal .t-seg, .t-modal video").first).to_be_visible()
        look(f"dialog-{kind}")
        page.keyboard.press("Escape")
        expect(page.locator(".t-modal")).to_have_count(0)


def boards(page: Page, look: Callable[[str], None]) -> None:
    """Pictures with the wipe, a blind test, clips and sounds."""
    page.locator("#c-history").select_option("pictures")
    expect(page.locator("#compare .t-refused")).to_contain_text("broken does not fit")
    expect(page.locator("#compare .t-wipe")).to_be_visible()
    look("compare-refused")
    page.get_by_text("Blind test").first.click()
    expect(page.locator("#c-blind-b option")).to_have_count(2)
    look("compare-offer")
    page.locator("#c-blind").click()
    expect(page.get_by_role("heading", name="Blind test, 1 of 10")).to_be_visible()
    look("compare-blind")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", name="Blind test, 2 of 10")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Blind test, 2 of 10")).to_be_visible()
    page.locator(".t-trial").focus()
    for number in range(3, 11):
        page.keyboard.press("ArrowLeft")
        expect(page.get_by_role("heading", name=f"Blind test, {number} of 10")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".t-verdict")).to_be_visible()
    look("compare-verdict")
    page.get_by_role("button", name="Done").click()
    for kind, marks in (("clips", "#compare .t-together"), ("sounds", "#compare .t-switched")):
        page.locator("#c-history").select_option(kind)
        expect(page.locator(marks)).to_be_visible()
        look(f"compare-{kind}")
