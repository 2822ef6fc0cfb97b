"""Stable Diffusion 2.x: the UNet of 1.x with linear projections, told the text by OpenCLIP-H."""

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
class StableDiffusion2(Family):
    """Velocity (the 768-pixel models) or noise prediction (base), as the scheduler states, on 1000 discrete steps."""

    name = "sd2"
    title = "Stable Diffusion 2.x"
    pipelines = {"generate": "StableDiffusionPipeline"}
    accepts = ("StableDiffusionPipeline",)
    denoiser = "unet"
    text_parts = ("tokenizer", "text_encoder")
    sources = {
        "2.1": "stabilityai/stable-diffusion-2-1",
        "2.1-base": "stabilityai/stable-diffusion-2-1-base",
        "2.0": "stabilityai/stable-diffusion-2",
        "2.0-base": "stabilityai/stable-diffusion-2-base",
        "pseudo-flex-v2": "bghira/pseudo-flex-v2",
        "pseudo-journey-v2": "bghira/pseudo-journey-v2",
        "digital-diffusion": "Junglerally/Digital-Diffusion",
    }
    resolution = 768
    guidance = 7.5
    timesteps = Uniform()
    targets = _ddpm.TARGETS
    names = Names(
        native=_ddpm.sgm(_ddpm.SMALL),
        kohya="diffusers",
        kohya_lacks=_ddpm.OUTSIDE,
        text={"text_encoder": ("lora_te_", "text_encoders.clip_h.transformer.")},
        architecture="stable-diffusion-v2-768-v",
        aliases=("stable-diffusion-v2-512", "stable-diffusion-v2"),
        version="sd_v2_v",
    )
    trainable_text = {"text_encoder": 0}
    quantised = _ddpm.QUANTISED
    control = _ddpm.control("StableDiffusionControlNetPipeline")
    licence = "CreativeML Open RAIL++-M"
    size = "0.87B"
    predicts = "velocity, epsilon"
    encoders = "OpenCLIP-H"

    def named(self, config: Mapping[str, Any]) -> Names:
        """See `Family.named`."""
        return _ddpm.named(self.names, config)

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses distilled models and Stable Diffusion 1."""
        super().accept(source)
        if not _ddpm.is_sd2(source):
            raise UserError(
                f"source {source.name} is a Stable Diffusion 1 model (its unet has no use_linear_projection); "
                "set family: sd1."
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
