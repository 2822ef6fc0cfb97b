"""Videos and sounds in Compare, in headless Chromium: they load, play together, and one is not louder."""

from __future__ import annotations

import wave
from pathlib import Path

import av
import numpy as np
import pytest
import yaml

from gradio_app.workspace import Workspace
from tests.app.helpers import served
from tuner.events import Journal

pytestmark = pytest.mark.browser
browser = pytest.importorskip("tests.app.browser", reason="playwright or a browser is missing")

expect = browser.expect
TOGETHER = """() => {
  const [a, b] = document.querySelectorAll("#compare .t-wipe-box video, #compare .t-wipe-box audio");
  return a && b && a.readyState >= 3 && !a.paused && !b.paused && a.currentTime > 0.3
    && Math.abs(a.currentTime - b.currentTime) < 0.1;
}"""
PLACES = """() => [...document.querySelectorAll("#compare .t-wipe-box video, #compare .t-wipe-box audio")].map(
  (p) => ({ at: p.currentTime, volume: p.volume, muted: p.muted, paused: p.paused }))"""


def clip(path: Path, shade: int) -> None:
    """Four seconds in the codec that the engine writes."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("h264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(32):
            picture = np.full((48, 64, 3), shade + 4 * i, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())


def tone(path: Path, loud: float) -> None:
    """Twenty seconds, in stereo; loud: the largest value."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(8000)
        wide = np.repeat(32767 * loud * np.sin(np.arange(160_000) / 5), 2)
        out.writeframes(wide.astype(np.int16).tobytes())


def comparison(folder: Path, files: list[str]) -> None:
    """A finished comparison of two columns, one prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = [
        {"label": label, "adapter": adapter, "strength": 1.0} for label, adapter in (("Base", None), ("My one", "x"))
    ]
    asked = {"family": "wan", "prompts": ["a wave"], "seeds": [0], "contenders": columns}
    (folder / "request.yaml").write_text(yaml.safe_dump(asked))
    journal = Journal(folder / "events.jsonl")
    journal("started", pid=1, born=0.0, from_step=0, steps=0, name="compare")
    for i, name in enumerate(files):
        journal("sample", contender=i, prompt=0, seed=0, file=name)
    journal("finished", seconds=1.0)
    journal.close()


def test_videos_and_sounds_against_each_other(context: browser.Window, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "home").compare
    for name in ("sounds", "videos"):
        (place / name).mkdir()
    for i, (shade, loud) in enumerate(((20, 0.2), (90, 0.6))):
        clip(place / "videos" / f"c{i}.mp4", shade)
        tone(place / "sounds" / f"c{i}.wav", loud)
    comparison(place / "sounds", ["c0.wav", "c1.wav"])
    comparison(place / "videos", ["c0.mp4", "c1.mp4"])
    page = context[0].new_page()
    with served(tmp_path / "home", "0.01") as address:
        page.goto(f"{address}?tab=compare")
        page.locator("#c-history").select_option("videos")
        videos(page)
        page.locator("#c-history").select_option("sounds")
        sounds(page)
        blind(page)


def videos(page: browser.Page) -> None:
    """Both play within a tenth of a second; the range moves both."""
    expect(page.locator("#compare .t-matrix video")).to_have_count(2)
    page.get_by_role("button", name="Play both").click()
    page.wait_for_function(TOGETHER)
    browser.shot(page, "compare-videos")
    page.get_by_role("button", name="Pause both").click()
    expect(page.get_by_role("button", name="Play both")).to_be_visible()
    page.get_by_label("Place in both clips").evaluate("n => { n.value = 0.5; n.dispatchEvent(new Event('input')); }")
    page.wait_for_function("""() => [...document.querySelectorAll("#compare .t-together video")].every(
        (v) => !v.seeking && Math.abs(v.currentTime - 2) < 0.1)""")
    assert all(p["muted"] and p["paused"] for p in page.evaluate(PLACES))
    page.get_by_role("button", name="Play both").click()
    page.get_by_label("Place in both clips").evaluate("n => { n.value = 0.25; n.dispatchEvent(new Event('input')); }")
    page.wait_for_function(TOGETHER)
    page.get_by_role("button", name="Pause both").click()
    assert page.get_by_role("group", name="Which one is heard").count() == 0, "silent clips offer no choice of sound"


def sounds(page: browser.Page) -> None:
    """The louder one is turned down to a third; one is heard; a switch keeps the place."""
    expect(page.get_by_text("Loudness is matched.")).to_be_visible()
    quiet, loud = page.evaluate(PLACES)
    assert (quiet["volume"], loud["volume"]) == (1, pytest.approx(0.2 / 0.6, rel=0.01))
    assert (quiet["muted"], loud["muted"]) == (False, True)
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function(TOGETHER)
    before = page.evaluate(PLACES)[0]["at"]
    page.get_by_role("button", name="B: My one").click()
    expect(page.get_by_role("button", name="B: My one")).to_have_attribute("aria-pressed", "true")
    page.wait_for_function(TOGETHER)
    after = page.evaluate(PLACES)
    assert [p["muted"] for p in after] == [True, False] and after[1]["at"] >= before
    page.get_by_label("Place in both recordings").evaluate(
        "n => { n.value = 0.5; n.dispatchEvent(new Event('input')); }"
    )
    page.wait_for_function("() => [...document.querySelectorAll('#compare audio')].every((p) => p.currentTime >= 10)")
    page.wait_for_function(TOGETHER)
    browser.shot(page, "compare-sounds")
    browser.tab(page, "Library")
    page.wait_for_function("() => [...document.querySelectorAll('#compare audio')].every((p) => p.paused)")
    browser.tab(page, "Compare")


def blind(page: browser.Page) -> None:
    """A blind test of sounds is equally loud too."""
    page.get_by_text("Blind test").first.click()
    page.locator("#c-blind").click()
    expect(page.locator(".t-trial").get_by_text("Loudness is matched.")).to_be_visible()
    volumes = page.locator(".t-trial audio").evaluate_all("all => all.map((p) => p.volume)")
    assert sorted(volumes) == [pytest.approx(0.2 / 0.6, rel=0.01), 1]
    page.locator("#c-left").click()
    expect(page.get_by_role("heading", name="Blind test, 2 of 10")).to_be_visible()
