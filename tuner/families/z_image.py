"""Z-Image: one stream of picture and text tokens in lists of their own lengths, told the text by Qwen 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, renamed
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Parts, Prompt
from . import _flow
from ._latents import halvings

ATTENTION = r".*\.attention\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r".*\.feed_forward\.w[123]"
MODULATION = r"(layers|noise_refiner)\.\d+\.adaLN_modulation\.0"
PATCH = 2
"""The pipeline asks for this patch size, whichever the network has besides."""


ATTENTION_NAMES = {"qkv": ("to_q", "to_k", "to_v"), "out": "to_out.0"}
RUNS = ("layers.{}.attention.", "noise_refiner.{}.attention.", "context_refiner.{}.attention.")
NAMES = Names(
    native=(
        *(row for run in RUNS for row in renamed(run, run, ATTENTION_NAMES)),
        *renamed(
            "",
            "",
            {
                "x_embedder": "all_x_embedder.2-1",
                "final_layer.linear": "all_final_layer.2-1.linear",
                "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
            },
        ),
    ),
    kohya="diffusers",
    architecture="Z-Image",
    version="z_image",
)


class ZImageOptions(Options):
    """Settings of Z-Image."""

    max_tokens: int = setting(512, "Tokens of a caption with its chat template that are read at most", "expert", ge=1)


@register
class ZImage(Family):
    """Rectified flow, in a network that counts time from noise to data and answers data - noise."""

    name = "z_image"
    title = "Z-Image (Base and Turbo)"
    pipelines = {"generate": "ZImagePipeline"}
    accepts = ("ZImagePipeline",)
    text_parts = ("tokenizer", "text_encoder")
    sources = {"base": "Tongyi-MAI/Z-Image", "turbo": "Tongyi-MAI/Z-Image-Turbo"}
    resolution = 1024
    guidance = 4.0
    timesteps = LogitNormal()
    # The noise refiner before these sees the picture alone, but the network has counted its tokens before it runs.
    blocks = (Blocks("layers", tokens="x", text="after", aligned=(Aligned("attn_mask"), Aligned("freqs_cis"))),)
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    names = NAMES
    licence = "Apache-2.0"
    size = "6.15B"
    encoders = "Qwen3-4B"
    Options = ZImageOptions

    def accept(self, source: Source) -> None:
        """See `Family.accept`; Z-Image Omni, which also reads pictures, has a network of its own kind."""
        super().accept(source)
        config = source.config("transformer")
        if config.get("siglip_feat_dim") is not None:
            raise UserError(
                f"source {source.name} is Z-Image Omni (its transformer has siglip_feat_dim), which z_image does not "
                "train; take base or turbo."
            )
        if PATCH not in config.get("all_patch_size", [PATCH]):
            raise UserError(
                f"source {source.name} has no patch size {PATCH} (all_patch_size in transformer/config.json), the one "
                "that its pipeline asks for; take another source."
            )

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`."""
        rate = halvings(source)
        return Geometry(multiple=PATCH * rate, rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; the chat template counts."""
        tokenizer = tokenizers["tokenizer"]
        told = tokenizer.apply_chat_template(
            [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return [("tokenizer", len(tokenizer(told).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [L, D] per caption, as long as it is."""
        embeds, _ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            device=parts["text_encoder"].device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_tokens,
        )
        return [{"embeds": e} for e in embeds]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens}

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """See `Family.collate`; the network takes lists and pads them itself."""
        return {"embeds": [c["embeds"] for c in conds]}

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`."""
        return _flow.shift(scheduler, latents.shape[-2] * latents.shape[-1] // PATCH**2)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; pictures are clips of one frame, time is 1 - t, the answer is data - noise."""
        out = denoiser(
            list(x.unsqueeze(2).unbind(0)), 1 - t, cond["embeds"], joint_attention_kwargs=None, return_dict=False
        )[0]
        return -torch.stack(out).squeeze(2)

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""
        text = {"prompt_embeds": [request.cond["embeds"]]}
        if request.negative is None:
            return {**text, "guidance_scale": 0.0}
        return {**text, "negative_prompt_embeds": [request.negative["embeds"]], "guidance_scale": request.guidance}

    def wants_negative(self, source: Source, guidance: float) -> bool:
        """See `Family.wants_negative`; this pipeline's guidance counts from 0 (Turbo's), where others say 1."""
        return guidance > 0.0
