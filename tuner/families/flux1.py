"""FLUX.1: a two-stream, then one-stream transformer over packed 2x2 patches, told the text by T5 and pooled CLIP."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..objective import Flow, Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Parts, Prompt
from ._latents import halvings

ATTENTION = r".*\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
# One-stream blocks have their feed-forward in proj_mlp and proj_out; the network's last layer, also proj_out, is left.
FEED_FORWARD = r".*\.ff(_context)?\.net\.(0\.proj|2)|single_transformer_blocks\.\d+\.proj_(mlp|out)"
MODULATION = r".*_blocks\.\d+\.norm(1|1_context)?\.linear"
ROTARY = (Aligned("image_rotary_emb", dims=(0,)),)


class Flux1Options(Options):
    """Settings of FLUX.1."""

    max_tokens: int = setting(512, "Length to which T5 captions are padded", ge=1, le=512)
    guidance: float = setting(
        1.0, "Value of the distilled guidance embedding while training; models without one ignore it", "expert", ge=0
    )


@register
class Flux1(Family):
    """Rectified flow; t moves towards noise with the size of the picture."""

    name = "flux1"
    title = "FLUX.1"
    pipelines = {"generate": "FluxPipeline"}
    accepts = ("FluxPipeline",)
    text_parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    sources = {
        "dev": "black-forest-labs/FLUX.1-dev",
        "schnell": "black-forest-labs/FLUX.1-schnell",
        "krea": "black-forest-labs/FLUX.1-Krea-dev",
    }
    resolution = 1024
    guidance = 3.5
    timesteps = LogitNormal()
    blocks = (
        Blocks("transformer_blocks", output=1, aligned=ROTARY),
        Blocks("single_transformer_blocks", output=1, aligned=ROTARY),
    )
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    licence = "FLUX.1 [dev] Non-Commercial; [schnell] Apache-2.0"
    size = "11.9B"
    encoders = "CLIP-L, T5-XXL"
    Options = Flux1Options

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        if snr_gamma is not None:
            raise UserError("train.snr_gamma has no meaning for flux1; remove it.")
        return Flow()

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; latents are packed in 2x2 patches."""
        rate = halvings(source)
        return Geometry(multiple=2 * rate, rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; CLIP's limit is left out, since only its pooled summary is used."""
        return [("tokenizer_2", len(tokenizers["tokenizer_2"](caption).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D] of T5, pooled: [P] of CLIP per caption."""
        embeds, pooled, _ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            device=parts["text_encoder_2"].device,
            max_sequence_length=self.options.max_tokens,
        )
        return [{"embeds": e, "pooled": p} for e, p in zip(embeds, pooled, strict=True)]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens}

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """exp(mu), mu linear in the number of tokens as in the pipeline.

        Unlike there, mu stops at max_shift: the line was drawn for up to max_image_seq_len tokens, and beyond, exp(mu)
        runs away (at 2048², half of all draws would lie above t = 0.96).
        """
        if not scheduler.get("use_dynamic_shifting", False):
            return float(scheduler.get("shift", 1.0))
        tokens = (latents.shape[-2] // 2) * (latents.shape[-1] // 2)
        low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
        few, many = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
        mu = min(low + (high - low) * (tokens - few) / (many - few), high)
        return math.exp(mu) if scheduler.get("time_shift_type", "exponential") == "exponential" else mu

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        b, c, h, w = x.shape
        config = getattr(denoiser, "module", denoiser).config  # a distributed wrapper hides it
        embeds = cond["embeds"]
        out = denoiser(
            hidden_states=FluxPipeline._pack_latents(x, b, c, h, w),
            timestep=t,
            guidance=torch.full_like(t, self.options.guidance) if config.guidance_embeds else None,
            pooled_projections=cond["pooled"],
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=FluxPipeline._prepare_latent_image_ids(b, h // 2, w // 2, x.device, x.dtype),
            joint_attention_kwargs={},
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(out, h, w, 1)

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`: the guidance embedding where there is one, else real guidance away from the negative."""
        text = {"prompt_embeds": request.cond["embeds"][None], "pooled_prompt_embeds": request.cond["pooled"][None]}
        if parts["transformer"].config.guidance_embeds:
            return {**text, "guidance_scale": request.guidance}
        if request.negative is None or request.guidance <= 1.0:
            return text
        negative = {
            "negative_prompt_embeds": request.negative["embeds"][None],
            "negative_pooled_prompt_embeds": request.negative["pooled"][None],
        }
        return {**text, **negative, "true_cfg_scale": request.guidance}

    def wants_negative(self, source: Source, guidance: float) -> bool:
        """See `Family.wants_negative`; distilled guidance needs none."""
        return guidance > 1.0 and not source.config("transformer").get("guidance_embeds", False)
