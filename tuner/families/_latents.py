"""What families have in common about latents and what goes into them."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..source import Source
from ..types import Media


def halvings(source: Source) -> int:
    """Pixels per latent cell of diffusers' `AutoencoderKL`, which halves between its levels."""
    levels = source.config("vae").get("block_out_channels")
    if not levels:
        raise UserError(f"source {source.name} has no vae/config.json with block_out_channels; download it again.")
    return 2 ** (len(levels) - 1)


def first_frames(media: Media, family: str) -> Tensor:
    """What image_to_video starts from: [B, 3, H, W] in -1..1, the reference where there is one, else the clip's own.

    Raises `UserError` for single pictures, from which nothing about motion can be learnt.
    """
    if media.pixels is None or media.pixels.ndim != 5 or media.pixels.shape[2] < 2:
        raise UserError(
            f"task is image_to_video, but the data hold single pictures, after whose first frame nothing is left to "
            f"draw; leave pictures out of this run, or train {family} on them with task=generate."
        )
    return media.references[0] if media.references else media.pixels[:, :, 0]


def pictures(pixels: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in -1..1 → PIL, as a user would give them to a pipeline."""
    plain = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(p) for p in plain.permute(0, 2, 3, 1).cpu().numpy()]


def later(x: Tensor) -> Tensor:
    """[B, 1, f, h, w] for x [B, C, f, h, w]: 0 in the first frame, which is given, 1 in all others."""
    mask = torch.ones_like(x[:, :1])
    mask[:, :, 0] = 0
    return mask
