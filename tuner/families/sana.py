"""Sana: a linear-attention transformer over 32x compressed latents, told the text by Gemma 2."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import SanaPipeline
from torch import Tensor, nn

from ..blocks import Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, renamed
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from . import _flow

ATTENTION = r".*\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
# The feed-forward is convolutional; its depthwise 3x3 part is left out.
FEED_FORWARD = r".*\.ff\.conv_(inverted|point)"
AROUND = r"caption_projection\.linear_[12]|time_embed\.linear"
INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
"""What the pipeline puts before a prompt; Sana learned captions behind it."""
DIVISOR = 32
"""The pipeline takes no size that this does not divide, whatever the autoencoder."""


NAMES = Names(
    native=(
        *renamed(
            "blocks.{}.",
            "transformer_blocks.{}.",
            {
                "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
                "attn.proj": "attn1.to_out.0",
                "cross_attn.q_linear": "attn2.to_q",
                "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
                "cross_attn.proj": "attn2.to_out.0",
                "mlp.inverted_conv.conv": "ff.conv_inverted",
                "mlp.depth_conv.conv": "ff.conv_depth",
                "mlp.point_conv.conv": "ff.conv_point",
            },
        ),
        *renamed(
            "",
            "",
            {
                "x_embedder.proj": "patch_embed.proj",
                "t_embedder.mlp.0": "time_embed.emb.timestep_embedder.linear_1",
                "t_embedder.mlp.2": "time_embed.emb.timestep_embedder.linear_2",
                "t_block.1": "time_embed.linear",
                "y_embedder.y_proj.fc1": "caption_projection.linear_1",
                "y_embedder.y_proj.fc2": "caption_projection.linear_2",
                "final_layer.linear": "proj_out",
            },
        ),
    ),
    comfy=False,  # only through node packs with loaders of their own
    architecture="sana",
    version="sana",
)


class SanaOptions(Options):
    """Settings of Sana."""

    instruction: bool = setting(
        True, "Put Sana's own instruction to the text encoder before every caption, as its pipeline does"
    )
    max_tokens: int = setting(300, "Length to which captions are padded", "expert", ge=2, le=300)


@register
class Sana(Family):
    """Rectified flow with a static shift; the autoencoder has no distribution, its code is the latent."""

    name = "sana"
    title = "Sana 1.0 and 1.5"
    pipelines = {"generate": "SanaPipeline"}
    accepts = ("SanaPipeline",)
    text_parts = ("tokenizer", "text_encoder")
    sources = {
        "1.5-1.6b": "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
        "1.5-4.8b": "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
        "1.0-1.6b": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
        "1.0-1.6b-2k": "Efficient-Large-Model/Sana_1600M_2Kpx_BF16_diffusers",
        "1.0-0.6b": "Efficient-Large-Model/Sana_600M_1024px_diffusers",
        "1.0-0.6b-512": "Efficient-Large-Model/Sana_600M_512px_diffusers",
    }
    resolution = 1024
    guidance = 4.5
    timesteps = LogitNormal()
    blocks = (Blocks("transformer_blocks", plane=True),)
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{AROUND}",
    }
    names = NAMES
    licence = "NVIDIA licence (NSCL v2-custom), see the model card; text encoder: Gemma Terms of Use"
    size = "0.6B, 1.6B, 4.8B"
    encoders = "Gemma 2 2B"
    Options = SanaOptions

    def accept(self, source: Source) -> None:
        """See `Family.accept`; Sana Sprint is distilled to one to four steps, which training on pictures undoes."""
        if source.pipeline.startswith("SanaSprint") or source.config("transformer").get("guidance_embeds"):
            raise UserError(
                f"source {source.name} is Sana Sprint, which is distilled to a few steps; train Sana 1.5 instead "
                "(source: 1.5-1.6b)."
            )
        super().accept(source)

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`."""
        rate = 2 ** (len(source.config("vae")["encoder_block_out_channels"]) - 1)
        patch = source.config("transformer").get("patch_size", 1)
        return Geometry(multiple=math.lcm(DIVISOR, rate * patch), rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; behind the instruction the start token's place is lost."""
        limit = self.options.max_tokens - (1 if self.options.instruction and caption else 0)
        return [("tokenizer", len(tokenizers["tokenizer"](caption).input_ids), limit)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D], mask: [max_tokens], 1 = read, per caption.

        The empty caption stands for no text, before which the pipeline puts no instruction either.
        """
        pipe = self.pipe(parts)

        def encode(prompt: Prompt) -> Cond:
            embeds, mask, _, _ = pipe.encode_prompt(
                [prompt.text],
                do_classifier_free_guidance=False,
                device=parts["text_encoder"].device,
                max_sequence_length=self.options.max_tokens,
                complex_human_instruction=INSTRUCTION if self.options.instruction and prompt.text else None,
            )
            return {"embeds": embeds[0], "mask": mask[0]}

        return [encode(p) for p in prompts]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"instruction": self.options.instruction, "max_tokens": self.options.max_tokens}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """See `Family.encode_media`; [B, 32, h, w]."""
        assert media.pixels is not None
        vae = parts["vae"]
        return vae.encode(media.pixels.to(vae.dtype)).latent * vae.config.scaling_factor

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`."""
        return _flow.shift(scheduler, latents.shape[-2] * latents.shape[-1])

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        out = denoiser(
            x,
            encoder_hidden_states=cond["embeds"],
            encoder_attention_mask=cond["mask"],
            timestep=t * 1000 * _flow.bare(denoiser).config.timestep_scale,
            return_dict=False,
            attention_kwargs=None,
        )[0]
        # twice the channels: the second half is a learned variance, which the pipeline does not use either
        return out.chunk(2, dim=1)[0] if out.shape[1] == 2 * x.shape[1] else out

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`; sizes are drawn as asked for, not at the nearest of the pipeline's list."""

        def text(cond: Cond, prefix: str) -> dict[str, Tensor]:
            mask = cond["mask"][None].to(torch.int64)
            return {f"{prefix}prompt_embeds": cond["embeds"][None], f"{prefix}prompt_attention_mask": mask}

        common = {**text(request.cond, ""), "negative_prompt": None, "use_resolution_binning": False}
        if request.negative is None:
            return {**common, "guidance_scale": 1.0}
        return {**common, **text(request.negative, "negative_"), "guidance_scale": request.guidance}
