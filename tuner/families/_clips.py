"""What the LTX families have in common: compression of their autoencoders, statistics, a first frame that is given."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..source import Source


def compression(source: Source) -> tuple[int, int]:
    """(frames, pixels) per latent cell, as the autoencoder's own class reads them from its configuration."""
    vae = source.config("vae")
    halvings = 2 ** sum(vae.get("spatio_temporal_scaling", (True, True, True, False)))
    time = vae.get("temporal_compression_ratio") or vae.get("patch_size_t", 1) * halvings
    return time, vae.get("spatial_compression_ratio") or vae.get("patch_size", 4) * halvings


def normalised(vae: torch.nn.Module, z: Tensor, scale: float) -> Tensor:
    """[B, C, f, h, w] → the same by the statistics that lie beside the autoencoder's weights."""
    mean, std = (getattr(vae, name).to(z).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return (z - mean) * scale / std


def asked(x: Tensor) -> Tensor:
    """[1, 1, f, h, w] for latents [B, C, f, h, w]: 0 in the first frame, which is given, 1 elsewhere."""
    mask = torch.ones_like(x[:1, :1])
    mask[:, :, 0] = 0
    return mask


def refuse_distilled(source: Source, instead: str) -> None:
    """Raise `UserError` for the models that were distilled to few steps, which only their names tell."""
    if "distilled" in Path(source.name).name.lower():
        raise UserError(
            f"source {source.name} is distilled to a few steps, which training would undo; train {instead} instead and "
            "use the result with the distilled model."
        )
