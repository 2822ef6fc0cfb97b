"""The first thing a newcomer runs: `python -m tuner demo`, whole, with its effect measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuner import demo, recipe
from tuner.home import package_recipes

DEMO = package_recipes() / "demo"


@pytest.mark.long
def test_the_demo_learns_the_style_and_keeps_the_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the steps of the demo: the colours come a quarter nearer to the style, and subjects stay recognisable."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    wanted = recipe.load(DEMO / "style-lora.yaml", ["train.steps=150", "validate.every=150", "save.every=150"])
    out = tmp_path / "run"
    assert demo.main(wanted, out) == 0
    said = json.loads((out / "demo.json").read_text())
    assert said["style_distance"]["after"] < 0.75 * said["style_distance"]["before"]
    assert said["among_five_nearest"]["after"] >= 0.4, "chance is 0.025"
    assert said["among_five_nearest"]["after"] >= said["among_five_nearest"]["before"]
    assert Image.open(out / "before-after.png").size[0] > 800


def test_what_is_drawn_was_not_trained_on() -> None:
    trained = {p.stem.replace("-", " ") for p in (DEMO / "images").glob("*.png")}
    subjects, real = demo.held_out()
    assert len(trained) == 24 and len(subjects) == len(real) == 200
    assert not trained & set(subjects)


def test_the_measures_know_a_style_and_a_subject_when_they_see_one() -> None:
    subjects, real = demo.held_out()
    style = [demo._open(p) for p in sorted((DEMO / "images").glob("*.png"))]
    assert demo.style_distance(real, style) < 0.1
    reddish = [np.clip(p * [1.0, 0.5, 0.5], 0, 1) for p in real]
    assert demo.style_distance(reddish, style) > 0.3
    known = dict(zip(subjects, real, strict=True))
    assert demo.ranks(real[:20], subjects[:20], known) == [0] * 20
    assert np.mean(demo.ranks(real[:20], subjects[20:40], known)) > 50, "another subject's picture is not near"


def test_the_weights_that_ship_are_small() -> None:
    assert sum(p.stat().st_size for p in (DEMO / "base").rglob("*") if p.is_file()) <= 30_000_000
