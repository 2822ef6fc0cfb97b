"""What families that look their positions up in a table of fixed size have in common."""

from __future__ import annotations

from torch import Tensor

from ..errors import UserError


def must_fit(x: Tensor, side: int, family: str) -> None:
    """Raise `UserError` if latents [B, C, h, w] have more cells on a side than the table has places for."""
    height, width = x.shape[-2:]
    if max(height, width) > side:
        share = side / max(height, width)
        raise UserError(
            f"media.resolutions (or validate.size) leads to latents of {width}x{height} cells, but this {family} model "
            f"knows places for {side} cells a side; lower it to {share:.0%} or less."
        )
