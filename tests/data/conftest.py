"""Pictures and a family small enough to check by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tuner.data.index import Item
from tuner.errors import Problem
from tuner.family import Family
from tuner.types import Parts


class Fake(Family):
    """Latents are means over 8x8 pixels; a caption becomes its length and a row per word."""

    name = "fake"
    calls: list[int]

    def __init__(self, setting: int = 0) -> None:
        self.options, self.setting, self.calls = None, setting, []

    def encode_settings(self) -> dict[str, Any]:
        return {"setting": self.setting}

    def encode_media(self, parts, pixels):
        self.calls.append(len(pixels))
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def encode_text(self, parts, captions):
        self.calls.append(len(captions))
        return [{"text": torch.full((4,), float(len(c))), "id": torch.tensor(len(c))} for c in captions]

    def frame_cond(self, framing):
        return {"size": torch.tensor([*framing.original, *framing.corner, *framing.size])}

    def token_counts(self, tokenizers, caption):
        return [("tokenizer", len(caption.split()), 4), ("tokenizer_2", len(caption.split()), 500)]


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
    return Item(**{
        "dataset": 0, "path": Path(name), "digest": name, "width": width, "height": height, "caption": name,
        "caption_from": f"{name}.txt", **more,
    })  # fmt: skip


def texts(problems: list[Problem], level: str = "error") -> str:
    return "\n".join(p.text for p in problems if p.level == level)
