"""Stable Diffusion 1.x: a UNet over 4-channel latents, told the text by CLIP-L."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..family import Family, Geometry, Request, register
from ..native import Names
from ..objective import Objective
from ..recipe import Uniform
from ..source import Source
from ..types import Cond, Parts, Prompt
from . import _ddpm
from ._latents import halvings


@register
class StableDiffusion1(Family):
    """Noise or velocity prediction, whichever the model's scheduler states, on 1000 discrete steps."""

    name = "sd1"
    title = "Stable Diffusion 1.x"
    pipelines = {"generate": "StableDiffusionPipeline"}
    accepts = ("StableDiffusionPipeline",)
    denoiser = "unet"
    text_parts = ("tokenizer", "text_encoder")
    sources = {
        "1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "1.4": "CompVis/stable-diffusion-v1-4",
        "dreamshaper": "Lykon/dreamshaper-8",
    }
    resolution = 512
    guidance = 7.5
    timesteps = Uniform()
    targets = _ddpm.TARGETS
    # kohya's tools train diffusers' UNet here, and Stability AI's in sdxl
    names = Names(
        native=_ddpm.sgm(_ddpm.SMALL),
        kohya="diffusers",
        kohya_lacks=_ddpm.OUTSIDE,
        text={"text_encoder": ("lora_te_", "text_encoders.clip_l.transformer.")},
        architecture="stable-diffusion-v1",
        version="sd_v1",
    )
    trainable_text = {"text_encoder": 0}
    quantised = _ddpm.QUANTISED
    control = _ddpm.control("StableDiffusionControlNetPipeline")
    licence = "CreativeML OpenRAIL-M"
    size = "0.86B"
    predicts = "epsilon, velocity"
    encoders = "CLIP-L"

    def named(self, config: Mapping[str, Any]) -> Names:
        """See `Family.named`."""
        return _ddpm.named(self.names, config)

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses distilled models and Stable Diffusion 2."""
        super().accept(source)
        if _ddpm.is_sd2(source):
            raise UserError(
                f"source {source.name} is a Stable Diffusion 2 model (unet use_linear_projection); set family: sd2."
            )
        _ddpm.refuse_guidance_embedding(source)

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """See `Family.load`; states that samples are shown as they are, without the checker that blacks some out."""
        loaded = super().load(source, parts, dtype)
        loaded.components["requires_safety_checker"] = False
        loaded.components[_ddpm.RATE] = halvings(source)
        return loaded

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _ddpm.diffusion(source, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`."""
        return _ddpm.geometry(source)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`."""
        return _ddpm.clip_tokens(tokenizers, caption)

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [77, D] per caption."""
        embeds, _ = self.pipe(parts).encode_prompt([p.text for p in prompts], parts["text_encoder"].device, 1, False)
        return [{"embeds": e} for e in embeds]

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the answer is noise or velocity, as the objective's target."""
        return denoiser(x, _ddpm.step_index(t), encoder_hidden_states=cond["embeds"], return_dict=False)[0]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""
        text = {"prompt_embeds": request.cond["embeds"][None]}
        if request.negative is not None:
            text["negative_prompt_embeds"] = request.negative["embeds"][None]
        return {**text, "guidance_scale": request.guidance}
