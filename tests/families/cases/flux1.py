"""FLUX.1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from tests.families.case import Case, Rig, Shape
from tests.tiny import build


class Flux1(Case):
    """FLUX.1 [dev]: guidance embedding, shift by size."""

    name = family = "flux1"
    options = {"max_tokens": 32}
    settings = {"max_sequence_length": 32}
    overfit_steps = 100
    quick = True
    millions = 11901.4
    layers = {"default": 19 * 8 + 38 * 3, "attention+feed-forward": 19 * 12 + 38 * 5, "all-linear": 19 * 14 + 38 * 6}

    def build(self, folder: Path) -> None:
        build("flux1", folder)

    def real(self) -> nn.Module:
        return FluxTransformer2DModel(guidance_embeds=True)

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        return FluxPipeline._pack_latents(x, *x.shape)

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        return FluxPipeline._unpack_latents(x, shape.height, shape.width, rig.official.vae_scale_factor)


class Schnell(Flux1):
    """FLUX.1 [schnell]: neither; real latent channels."""

    name = "flux1-schnell"
    quick = False

    def build(self, folder: Path) -> None:
        schedule: dict[str, Any] = {"use_dynamic_shifting": False, "shift": 1.0}
        build("flux1", folder, guidance_embeds=False, latent_channels=16, scheduler=schedule)

    def guided(self, rig: Rig) -> dict[str, Any]:
        return {"true_cfg_scale": self.guidance, "negative_prompt": [""]}
