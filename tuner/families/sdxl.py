"""Stable Diffusion XL: a larger UNet, told the text by CLIP-L and CLIP-bigG, and how the picture was cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..family import Family, Framing, Geometry, Request, register
from ..native import Names
from ..objective import Objective
from ..recipe import Uniform
from ..source import Source
from ..types import Cond, Parts, Prompt
from . import _ddpm
from ._latents import halvings

ZEROS = "force_zeros_for_empty_prompt"


@register
class StableDiffusionXL(Family):
    """Noise or velocity prediction on 1000 discrete steps; "no text" is all zeros where the model says so."""

    name = "sdxl"
    title = "Stable Diffusion XL"
    pipelines = {"generate": "StableDiffusionXLPipeline"}
    accepts = ("StableDiffusionXLPipeline",)
    denoiser = "unet"
    text_parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    sources = {"base-1.0": "stabilityai/stable-diffusion-xl-base-1.0"}
    resolution = 1024
    guidance = 5.0
    timesteps = Uniform()
    targets = _ddpm.TARGETS
    # kohya's tools train Stability AI's UNet here, and diffusers' in sd1 and sd2
    names = Names(
        native=_ddpm.sgm(_ddpm.LARGE),
        kohya="native",
        kohya_lacks=_ddpm.OUTSIDE,
        text={
            "text_encoder": ("lora_te1_", "text_encoders.clip_l.transformer."),
            "text_encoder_2": ("lora_te2_", "text_encoders.clip_g.transformer."),
        },
        architecture="stable-diffusion-xl-v1-base",
        version="sdxl_base_v1-0",
    )
    trainable_text = {"text_encoder": 1, "text_encoder_2": 0}  # of CLIP-L only the last layer but one is read
    quantised = _ddpm.QUANTISED
    control = _ddpm.control("StableDiffusionXLControlNetPipeline")
    licence = "CreativeML Open RAIL++-M"
    size = "2.57B"
    predicts = "epsilon, velocity"
    encoders = "CLIP-L, CLIP-G"

    def named(self, config: Mapping[str, Any]) -> Names:
        """See `Family.named`."""
        return _ddpm.named(self.names, config)

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses distilled models and latents normalised per channel (Playground 2.5)."""
        super().accept(source)
        _ddpm.refuse_guidance_embedding(source)
        if source.config("vae").get("latents_mean") is not None:
            raise UserError(
                f"source {source.name} normalises its latents per channel (vae latents_mean), which sdxl does not "
                "train; take another source."
            )

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """See `Family.load`; notes what a fresh ControlNet needs to know of the autoencoder."""
        loaded = super().load(source, parts, dtype)
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
        """embeds: [77, D1 + D2], pooled: [P] per caption.

        The empty caption becomes what the pipeline uses for "no prompt": zeros if the model index forces them. So
        a dropped caption in training, an empty negative prompt and no negative prompt are one and the same.
        """
        device = parts["text_encoder_2"].device
        embeds, _, pooled, _ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts], device=device, do_classifier_free_guidance=False
        )
        conds = [{"embeds": e, "pooled": p} for e, p in zip(embeds, pooled, strict=True)]
        empty = [parts.components.get(ZEROS, True) and not p.text for p in prompts]
        return [
            {k: torch.zeros_like(v) for k, v in c.items()} if no_text else c
            for c, no_text in zip(conds, empty, strict=True)
        ]

    def frame_cond(self, framing: Framing) -> Cond:
        """See `_ddpm.framing_ids`."""
        return _ddpm.framing_ids(framing)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the answer is noise or velocity, as the objective's target."""
        return denoiser(
            x,
            _ddpm.step_index(t),
            encoder_hidden_states=cond["embeds"],
            added_cond_kwargs={"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]},
            return_dict=False,
        )[0]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`; sizes are the pipeline's own defaults, an uncropped picture of the drawn size."""
        names = {"embeds": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
        text = {name: request.cond[key][None] for key, name in names.items()}
        if request.negative is not None:
            text |= {f"negative_{name}": request.negative[key][None] for key, name in names.items()}
        size = (request.height, request.width)
        return {**text, "guidance_scale": request.guidance, "original_size": size, "target_size": size}
