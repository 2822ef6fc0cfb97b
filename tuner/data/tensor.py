"""Items as tensors: read, scaled and cut by a plan. The only place where files meet torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..family import Framing, Geometry
from . import audio, media, stores, video
from .buckets import frame
from .facts import CHANGED, Unusable
from .item import Companion
from .plan import Planned


@dataclass(frozen=True)
class Tensors:
    """One use of an item. pixels: [3, H, W], of a clip [3, F, H, W], in -1..1. sound: [channels, samples] in -1..1.

    references: [3, h, w] each. mask: [1, H, W] uint8 at the size of the pixels. control: [3, H, W] uint8.
    """

    pixels: Tensor | None = None
    sound: Tensor | None = None
    references: tuple[Tensor, ...] = ()
    mask: Tensor | None = None
    control: Tensor | None = None


def load(planned: Planned, geometry: Geometry, background: str = "white") -> Tensors:
    """Everything that an encoder needs of an item. Raises `UserError` if a file changed since the scan."""
    item, bucket = planned.item, planned.bucket
    mask = None if item.mask is None else to_mask(planned)
    fitted = control(planned)
    looked = None if fitted is None else torch.from_numpy(np.array(fitted, np.uint8)).permute(2, 0, 1)
    sound = _sound(planned, geometry) if bucket.samples else None
    return Tensors(
        None if item.kind == "audio" else pixels(planned, background), sound, references(planned), mask, looked
    )


def pixels(planned: Planned, background: str = "white") -> Tensor:
    """The picture or clip of a plan → [3, H, W] or [3, F, H, W] float32 in -1..1."""
    item, framing = planned.item, planned.framing
    if item.kind == "image":
        return to_tensor(fit(picture(Companion(item.ref, item.digest, item.width, item.height), background), framing))
    try:
        clip = video.Clip(planned.start, planned.bucket.frames)
        area = box(framing, (item.width, item.height))
        file = _unchanged(item.ref, item.digest)
        frames = video.read(file, clip, planned.fps, area, framing.size, background)
    except Unusable as reason:
        raise UserError(f"{item.ref} {reason}") from None
    return torch.from_numpy(frames).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)


def _unchanged(ref: str, digest: str) -> Path:
    """A local file of the clip or sound, which must still be the one that was scanned. Raises `Unusable`."""
    path = stores.local(ref)
    stat = path.stat()
    if _digest(path, stat.st_size, stat.st_mtime_ns) != digest:
        raise Unusable(CHANGED)
    return path


@lru_cache(256)
def _digest(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sound(planned: Planned, geometry: Geometry) -> Tensor:
    item, rate = planned.item, geometry.sample_rate
    read = audio.read if item.kind == "audio" else video.sound
    try:
        seconds = planned.bucket.samples / rate
        return torch.from_numpy(
            read(_unchanged(item.ref, item.digest), planned.start, seconds, rate, geometry.channels)
        )
    except Unusable as reason:
        raise UserError(f"{item.ref} {reason}") from None


def references(planned: Planned) -> tuple[Tensor, ...]:
    """The reference pictures of a plan, each [3, h, w] in -1..1 at its size in the bucket."""
    pairs = zip(planned.item.references, planned.bucket.references, strict=True)
    return tuple(to_tensor(fit(picture(r), frame((r.width, r.height), size))) for r, size in pairs)


def starts(planned: Planned) -> tuple[Image.Image, ...]:
    """The pictures that an edit or a clip of this item starts from: its references, else its first frame."""
    shown = references(planned) or (pixels(planned)[:, 0],)
    return tuple(to_picture(one) for one in shown)


def control(planned: Planned) -> Image.Image | None:
    """The control picture of a plan, scaled and cut like its picture; None where the item has none."""
    shown = planned.item.control
    return None if shown is None else fit(picture(shown, "black"), planned.framing)


def to_picture(one: Tensor) -> Image.Image:
    """[3, H, W] in -1..1 → RGB."""
    return Image.fromarray(((one + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def open_picture(path: Path) -> Image.Image:
    """A picture file that a setting names, upright, RGB. Raises `UserError`."""
    try:
        return media.decode(stores.read(str(path))).image
    except Unusable as reason:
        raise UserError(f"{path} {reason}.") from None


def to_mask(planned: Planned) -> Tensor:
    """The mask of a plan, scaled and cut like its picture → [1, H, W] uint8."""
    assert planned.item.mask is not None
    image = picture(planned.item.mask, "black").convert("L")
    area = box(planned.framing, image.size)
    return torch.from_numpy(np.array(image.resize(planned.framing.size, Image.Resampling.BOX, area)))[None]


def picture(file: Companion, background: str = "white") -> Image.Image:
    """A picture, upright, RGB. Raises `UserError` if it is no longer the one that was scanned."""
    try:
        return media.load_bytes(stores.read(file.ref), file.digest, background)
    except Unusable as reason:
        raise UserError(f"{file.ref} {reason}") from None


def fit(image: Image.Image, framing: Framing) -> Image.Image:
    """Scaled and cut as planned."""
    return image.resize(framing.size, Image.Resampling.LANCZOS, box(framing, image.size))


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
