"""What families that edit pictures have in common: the latents of the pictures that an item is edited from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..types import Cond, Media


def encoded(media: Media, encode: Callable[[Media], Tensor]) -> list[Cond]:
    """One dict per item with reference_0, reference_1, ...: [C, h, w] each; {} for items without references."""
    assert media.pixels is not None
    latents = [encode(Media(pixels=r)) for r in media.references]
    return [{f"reference_{i}": z[item] for i, z in enumerate(latents)} for item in range(len(media.pixels))]


def listed(cond: Cond) -> list[Tensor]:
    """The references of a collated condition, in their order: [B, C, h, w] each."""
    count = sum(k.startswith("reference_") for k in cond)
    return [cond[f"reference_{i}"] for i in range(count)]


def collate(conds: Sequence[Cond]) -> Cond:
    """Stack items whose references agree in number and size: their tokens share one sequence without a mask.

    Raises `UserError` when they do not.
    """
    for key in {k for c in conds for k in c if k.startswith("reference_")}:
        shapes = {tuple(c[key].shape) if key in c else None for c in conds}
        if len(shapes) > 1:
            said = ", ".join(sorted("none" if s is None else f"{s[-1]}x{s[-2]} cells" for s in shapes))
            raise UserError(
                f"Items of one batch have reference pictures that differ in number or size ({said}); set train.batch "
                "to 1, or give each data set references of one number and one shape."
            )
    return {k: torch.stack([c[k] for c in conds]) for k in conds[0]}


def shrunk(picture: Image.Image, area: int) -> Image.Image:
    """The picture at no more than `area` pixels."""
    scale = (area / (picture.width * picture.height)) ** 0.5
    return picture if scale >= 1 else picture.resize((round(picture.width * scale), round(picture.height * scale)))


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """The picture with at least `side` pixels on its shorter side."""
    scale = side / min(picture.size)
    return picture if scale <= 1 else picture.resize((round(picture.width * scale), round(picture.height * scale)))
