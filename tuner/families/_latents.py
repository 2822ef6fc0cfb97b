"""What families with diffusers' `AutoencoderKL` have in common."""

from __future__ import annotations

from ..errors import UserError
from ..source import Source


def halvings(source: Source) -> int:
    """Pixels per latent cell: the autoencoder halves between its levels."""
    levels = source.config("vae").get("block_out_channels")
    if not levels:
        raise UserError(f"source {source.name} has no vae/config.json with block_out_channels; download it again.")
    return 2 ** (len(levels) - 1)
