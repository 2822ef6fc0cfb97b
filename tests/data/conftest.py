"""Pictures and a family small enough to check by hand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tuner.data.index import scan
from tuner.data.item import Item
from tuner.data.plan import Plan, plan
from tuner.errors import Problem
from tuner.family import Family, Geometry
from tuner.recipe import DataSet, MediaSpec
from tuner.types import Parts

GEOMETRY = Geometry(multiple=16, rate=8)


class Fake(Family):
    """Latents are means over 8x8 pixels; a caption becomes its length."""

    name = "fake"
    pipelines = {"generate": "FakePipeline"}
    calls: list[int]

    def __init__(self, setting: int = 0) -> None:
        self.options, self.setting, self.calls, self.task = None, setting, [], "generate"

    def encode_settings(self) -> dict[str, Any]:
        return {"setting": self.setting}

    def encode_media(self, parts, media):
        self.calls.append(len(media.pixels))
        return torch.nn.functional.avg_pool2d(media.pixels, 8)

    def encode_text(self, parts, prompts):
        self.calls.append(len(prompts))
        return [{"text": torch.full((4,), float(len(p.text))), "id": torch.tensor(len(p.text))} for p in prompts]

    def frame_cond(self, framing):
        return {"size": torch.tensor([*framing.original, *framing.corner, *framing.size])}

    def token_counts(self, tokenizers, caption):
        return [("tokenizer", len(caption.split()), 4), ("tokenizer_2", len(caption.split()), 500)]


def planned(specs: list[DataSet], resolutions=(64,), geometry: Geometry = GEOMETRY, **media: Any) -> Plan:
    """The plan of data sets on disk."""
    return plan(scan(specs), specs, MediaSpec(**media), resolutions, geometry)


def nothing(done: int, of: int, **fields: Any) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def parts() -> Parts:
    return Parts("transformer")


def picture(path: Path, size=(64, 64), colour=(200, 100, 50), caption: str | None = "a thing") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def item(width=64, height=64, name="a.png", **more: Any) -> Item:
    caption = more.pop("caption", name)
    return Item(**{
        "dataset": 0, "ref": name, "name": name, "kind": "image", "digest": hashlib.sha256(name.encode()).hexdigest(),
        "width": width, "height": height, "captions": (caption,), "caption_from": f"{name}.txt", **more,
    })  # fmt: skip


def texts(problems: list[Problem], level: str = "error") -> str:
    return "\n".join(p.text for p in problems if p.level == level)
