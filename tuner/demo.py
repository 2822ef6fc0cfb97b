"""`python -m tuner demo`: train the style LoRA that ships with the studio, then show and measure what it learnt.

Nothing is downloaded. The subjects that are drawn are not among the training pictures.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from . import compare, run
from .compare import Comparison, Contender
from .events import status
from .home import package_recipes
from .recipe import Recipe

SHOWN = 24
"""How many subjects are drawn and measured."""
EDGE = 64
Picture = np.ndarray
"""[64, 64, 3] float in 0..1."""


def main(wanted: Recipe, out: Path) -> int:
    """Train, draw, measure, and say where everything lies; returns the exit code."""
    code = run.start(wanted, out)
    if code != 0 or status(out).state != "finished":
        return code
    subjects, real = held_out()
    chosen = [subjects[i * len(subjects) // SHOWN] for i in range(SHOWN)]
    folder = out / "comparison"
    folder.mkdir(exist_ok=True)
    request = Comparison(
        family=wanted.family,
        source=wanted.source,
        options=wanted.options,
        prompts=[f"{subject}, fluent style" for subject in chosen],
        guidance=wanted.validation.guidance if wanted.validation else None,
        size=(EDGE, EDGE),
        contenders=[Contender(label="before"), Contender(label="after", adapter=str(out))],
    )
    code = run.watched(folder, lambda say, controls: compare.draw(request, folder, say, controls))
    if code != 0:
        return code
    before, after = ([_open(folder / f"{column:02d}-{row:02d}-0.png") for row in range(SHOWN)] for column in (0, 1))
    style = [_open(path) for path in sorted(Path(wanted.data[0].path).glob("*.png"))]
    measured = measure(before, after, style, dict(zip(subjects, real, strict=True)), chosen)
    (out / "demo.json").write_text(json.dumps(measured, indent=1))
    grid(chosen, before, after).save(out / "before-after.png")
    sys.stdout.write(_summary(measured, out))
    return 0


def held_out() -> tuple[list[str], list[Picture]]:
    """Subjects of the base that are not among the 24 pictures, and the real picture of each in the target style."""
    folder = package_recipes() / "demo"
    subjects = json.loads((folder / "held-out.json").read_text())
    sheet = np.asarray(Image.open(folder / "held-out.png").convert("RGB"), np.float32) / 255
    across = sheet.shape[1] // EDGE
    places = [(i // across * EDGE, i % across * EDGE) for i in range(len(subjects))]
    return subjects, [sheet[y : y + EDGE, x : x + EDGE] for y, x in places]


def _open(path: Path) -> Picture:
    image = Image.open(path).convert("RGB").resize((EDGE, EDGE), Image.Resampling.BOX)
    return np.asarray(image, np.float32) / 255


def colours(picture: Picture) -> np.ndarray:
    """The share of pixels in each of 4 x 4 x 4 colour cells: [64], sums to 1."""
    cells = np.minimum((picture * 4).astype(int), 3).reshape(-1, 3)
    return np.bincount(cells @ np.array([16, 4, 1]), minlength=64) / len(cells)


def style_distance(pictures: list[Picture], style: list[Picture]) -> float:
    """Mean over the pictures of the total variation (0..1) between their colours and the style's mean colours."""
    target = np.mean([colours(p) for p in style], axis=0)
    return float(np.mean([np.abs(colours(p) - target).sum() / 2 for p in pictures]))


def shape(picture: Picture) -> np.ndarray:
    """Means over 4 x 4 pixels: [16 * 16 * 3]."""
    return picture.reshape(16, 4, 16, 4, 3).mean((1, 3)).reshape(-1)


def ranks(pictures: list[Picture], names: list[str], real: dict[str, Picture]) -> list[int]:
    """For each picture, how many of the real ones are nearer (L2 of `shape`) than the one of its own subject."""
    known = {name: shape(picture) for name, picture in real.items()}
    result = []
    for picture, name in zip(pictures, names, strict=True):
        distances = {other: float(np.linalg.norm(shape(picture) - known[other])) for other in known}
        result.append(sum(d < distances[name] for other, d in distances.items() if other != name))
    return result


def measure(
    before: list[Picture], after: list[Picture], style: list[Picture], real: dict[str, Picture], names: list[str]
) -> dict[str, Any]:
    """Is the style nearer, and is the subject still there? Shares are of the pictures drawn."""
    found = {"before": ranks(before, names, real), "after": ranks(after, names, real)}
    return {
        "style_distance": {"before": style_distance(before, style), "after": style_distance(after, style)},
        "among_five_nearest": {k: sum(r < 5 for r in v) / len(v) for k, v in found.items()},
        "nearest": {k: sum(r < 1 for r in v) / len(v) for k, v in found.items()},
        "pictures": len(names),
        "candidates": len(real),
    }


def grid(names: list[str], before: list[Picture], after: list[Picture], across: int = 8) -> Image.Image:
    """Pairs of pictures, "before" above "after", each under its subject."""
    edge, label, gap = 96, 34, 10
    rows = -(-len(names) // across)
    width, height = across * (edge + gap) + gap, rows * (2 * edge + label + gap) + gap
    sheet = Image.new("RGB", (width + 60, height), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(12), ImageFont.load_default(11)
    for i, name in enumerate(names):
        x, y = gap + 60 + i % across * (edge + gap), gap + i // across * (2 * edge + label + gap)
        words = name.split()
        half = (len(words) + 1) // 2
        lines = [name] if pen.textlength(name, font) <= edge else [" ".join(words[:half]), " ".join(words[half:])]
        pen.multiline_text((x, y), "\n".join(line[:16] for line in lines), "black", font, spacing=1)
        for place, picture in enumerate((before[i], after[i])):
            image = Image.fromarray((picture * 255).round().astype(np.uint8)).resize(
                (edge, edge), Image.Resampling.NEAREST
            )
            sheet.paste(image, (x, y + label + place * edge))
        if i % across == 0:
            pen.text((gap, y + label + edge // 2), "before", "#666", small)
            pen.text((gap, y + label + edge + edge // 2), "after", "#666", small)
    return sheet


def _summary(measured: dict[str, Any], out: Path) -> str:
    style, five = measured["style_distance"], measured["among_five_nearest"]
    chance = 5 / measured["candidates"]
    return (
        f"\n{measured['pictures']} subjects that were not trained on, before and after: {out / 'before-after.png'}\n"
        f"Distance to the style's colours: {style['before']:.2f} before, {style['after']:.2f} after (0 = the same).\n"
        f"Subject among the five nearest of {measured['candidates']} real pictures of that style: "
        f"{five['before']:.0%} before, {five['after']:.0%} after (chance {chance:.1%}).\n"
        f"The LoRA: {out / 'export' / 'diffusers' / 'pytorch_lora_weights.safetensors'}\n"
        f"Everything of this run: {out}\n"
        f"See it in the app: python app.py\n"
    )
