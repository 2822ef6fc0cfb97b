"""AuraFlow: a two-stream, then one-stream transformer with a learnt table of positions, told the text by Pile-T5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import Blocks
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, Native, renamed
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Parts, Prompt
from . import _flow, _places
from ._latents import halvings

ATTENTION = r".*\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
FEED_FORWARD = r".*\.ff(_context)?\.(linear_1|linear_2|out_projection)"
MODULATION = r".*_blocks\.\d+\.norm1(_context)?\.linear"


FEED = {"c_fc1": "linear_1", "c_fc2": "linear_2", "c_proj": "out_projection"}
NAMES = Names(
    native=(
        *renamed(
            "double_layers.{}.",
            "joint_transformer_blocks.{}.",
            {
                "attn.w2q": "attn.to_q",
                "attn.w2k": "attn.to_k",
                "attn.w2v": "attn.to_v",
                "attn.w2o": "attn.to_out.0",
                "attn.w1q": "attn.add_q_proj",
                "attn.w1k": "attn.add_k_proj",
                "attn.w1v": "attn.add_v_proj",
                "attn.w1o": "attn.to_add_out",
                "modX.1": "norm1.linear",
                "modC.1": "norm1_context.linear",
            },
        ),
        *renamed("double_layers.{}.mlpX.", "joint_transformer_blocks.{}.ff.", FEED),
        *renamed("double_layers.{}.mlpC.", "joint_transformer_blocks.{}.ff_context.", FEED),
        *renamed(
            "single_layers.{}.",
            "single_transformer_blocks.{}.",
            {
                "attn.w1q": "attn.to_q",
                "attn.w1k": "attn.to_k",
                "attn.w1v": "attn.to_v",
                "attn.w1o": "attn.to_out.0",
                "modCX.1": "norm1.linear",
            },
        ),
        *renamed("single_layers.{}.mlp.", "single_transformer_blocks.{}.ff.", FEED),
        Native("modF.1", ("norm_out.linear",), swapped=True),
        *renamed(
            "",
            "",
            {
                "init_x_linear": "pos_embed.proj",
                "cond_seq_linear": "context_embedder",
                "t_embedder.mlp.0": "time_step_proj.linear_1",
                "t_embedder.mlp.2": "time_step_proj.linear_2",
                "final_linear": "proj_out",
            },
        ),
    ),
    architecture="AuraFlow",
    version="auraflow",
)


class AuraFlowOptions(Options):
    """Settings of AuraFlow."""

    max_tokens: int = setting(256, "Length to which captions are padded; Pony 7 was made with 768", ge=1, le=2048)


@register
class AuraFlow(Family):
    """Rectified flow with a static shift. Padding is zeros that the network attends, always to the same length."""

    name = "auraflow"
    title = "AuraFlow"
    pipelines = {"generate": "AuraFlowPipeline"}
    accepts = ("AuraFlowPipeline",)
    text_parts = ("tokenizer", "text_encoder")
    sources = {
        "v0.3": "fal/AuraFlow-v0.3",
        "v0.2": "fal/AuraFlow-v0.2",
        "v0.1": "fal/AuraFlow",
        "pony-v7": "purplesmartai/pony-v7-base",
    }
    resolution = 1024
    guidance = 3.5
    timesteps = LogitNormal()
    blocks = (
        Blocks("joint_transformer_blocks", output=1),
        Blocks("single_transformer_blocks", text="before"),
    )
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    names = NAMES
    licence = "Apache-2.0; Pony 7: PurpleSmartAI's own"
    size = "6.8B"
    encoders = "Pile-T5-XL"
    Options = AuraFlowOptions

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; the network cuts latents into patches, and the pipeline takes no size between 2x2."""
        rate = halvings(source)
        return Geometry(multiple=math.lcm(source.config("transformer").get("patch_size", 2), 2) * rate, rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`."""
        return [("tokenizer", len(tokenizers["tokenizer"](caption).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D] per caption, zeros where it is padded."""
        embeds, *_ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            do_classifier_free_guidance=False,
            device=parts["text_encoder"].device,
            max_sequence_length=self.options.max_tokens,
        )
        return [{"embeds": e} for e in embeds]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens}

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """Static: the pipeline tells its scheduler no size."""
        return float(scheduler.get("shift", 1.0))

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data.

        Latents larger than the table of positions are refused: the library would take other places without a word.
        """
        config = _flow.bare(denoiser).config
        _places.must_fit(x, math.isqrt(config.pos_embed_max_size) * config.patch_size, self.name)
        return denoiser(x, encoder_hidden_states=cond["embeds"], timestep=t, return_dict=False, attention_kwargs=None)[
            0
        ]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`; the pipeline wants masks beside the embeddings, but does not use them."""

        def text(cond: Cond, prefix: str = "") -> dict[str, Tensor]:
            embeds = cond["embeds"][None]
            mask = torch.ones(embeds.shape[:2], device=embeds.device)
            return {f"{prefix}prompt_embeds": embeds, f"{prefix}prompt_attention_mask": mask}

        if request.negative is None:
            return {**text(request.cond), "guidance_scale": 1.0}
        return {**text(request.cond), **text(request.negative, "negative_"), "guidance_scale": request.guidance}
