"""Pictures as tensors: scaled and cut by a plan. The only place where files meet torch."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..family import Framing
from . import media
from .buckets import Planned


def pixels(planned: Planned) -> Tensor:
    """The picture of a plan → [3, H, W] float32 in -1..1. Raises `UserError` if the file changed since the scan."""
    image = _load(planned, "picture")
    return to_tensor(image.resize(planned.framing.size, Image.Resampling.LANCZOS, box(planned.framing, image.size)))


def mask(planned: Planned, cells: tuple[int, int]) -> Tensor:
    """The mask of a plan → [1, h, w] float32 in 0..1: the mean of the mask over each latent cell, cells = (w, h)."""
    image = _load(planned, "mask").convert("L").convert("F")
    small = image.resize(cells, Image.Resampling.BOX, box(planned.framing, image.size))
    return torch.from_numpy(np.array(small, np.float32))[None] / 255


def to_tensor(image: Image.Image) -> Tensor:
    """RGB → [3, H, W] float32 in -1..1."""
    return torch.from_numpy(np.array(image, np.uint8)).permute(2, 0, 1).float().div_(127.5).sub_(1)


def box(framing: Framing, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """What the crop covers of a picture of this size (a mask may have another than the original): l, t, r, b.

    Scaling this box is scaling the whole and cutting, without ever holding the whole: a long thin picture may be
    gigabytes when scaled.
    """
    x, y = size[0] / framing.scaled[0], size[1] / framing.scaled[1]
    left, top = framing.corner[0] * x, framing.corner[1] * y
    right, bottom = left + framing.size[0] * x, top + framing.size[1] * y
    return left, top, min(right, size[0]), min(bottom, size[1])


def _load(planned: Planned, which: str) -> Image.Image:
    item = planned.item
    path, digest, paper = item.path, item.digest, "white"
    if which == "mask":
        assert item.mask is not None
        assert item.mask_digest is not None
        path, digest, paper = item.mask, item.mask_digest, "black"
    try:
        return media.load(path, digest, paper)
    except media.Unusable as reason:
        raise UserError(f"{path} {reason}") from None
