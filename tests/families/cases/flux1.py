"""FLUX.1 and Kontext."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from torch import nn

from tests.families.case import Rig, Shape
from tests.families.packed import Packed, picture
from tests.tiny import build
from tuner.family import Request
from tuner.types import Media


class Flux1(Packed):
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


class Schnell(Flux1):
    """FLUX.1 [schnell]: neither; real latent channels."""

    name = "flux1-schnell"
    quick = False
    overfit_steps, overfit_lr = 200, 3e-3

    def build(self, folder: Path) -> None:
        schedule: dict[str, Any] = {"use_dynamic_shifting": False, "shift": 1.0}
        wide = {"num_attention_heads": 8}  # patches of 64 channels do not fit through a narrow network
        build("flux1", folder, guidance_embeds=False, latent_channels=16, scheduler=schedule, transformer_settings=wide)

    def guided(self, rig: Rig) -> dict[str, Any]:
        return {"true_cfg_scale": self.guidance, "negative_prompt": [""]}


class Kontext(Flux1):
    """FLUX.1 Kontext [dev]: one reference per item, not of the drawn size."""

    name, task = "flux1-kontext", "edit"
    quick = False
    reference = (48, 40)

    def build(self, folder: Path) -> None:
        build("flux1", folder)
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace("FluxPipeline", "FluxKontextPipeline"))

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        pictures = [picture(i, *self.reference) for i in range(n)]
        references = torch.cat([VaeImageProcessor(do_resize=False).preprocess(p) for p in pictures])
        return Media(super().media(rig, shape, n).pixels, references=(references,))

    def run(self, pipe: Any, captions: Any, shape: Shape, **settings: Any) -> Any:
        # the official pipeline brings references and results to about a megapixel unless told not to
        pictures = [picture(i, *self.reference) for i in range(len(captions))]
        plain = {"image": pictures, "max_area": shape.width * shape.height, "_auto_resize": False}
        return super().run(pipe, captions, shape, **plain, **settings)

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        return replace(super().request(rig, caption, shape, steps), references=(picture(0, *self.reference),))

    def tokens(self, rig: Rig, shape: Shape) -> int:
        rate = rig.family.geometry(rig.source).rate
        return super().tokens(rig, shape) + (self.reference[0] // rate) * (self.reference[1] // rate) // 4
