"""Lumina-Image 2.0: one stream of text and picture tokens, told the text by Gemma 2 behind a system prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, Native, renamed
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Parts, Prompt
from . import _flow
from ._latents import halvings

ATTENTION = r".*\.attn\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r".*\.feed_forward\.linear_[123]"
MODULATION = r".*\.norm1\.linear"
SYSTEM_PROMPT = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based "
    "on textual prompts or user prompts."
)
"""The one of the model's pipeline."""
BEGIN = " <Prompt Start> "


BLOCK = {
    "attention.out": "attn.to_out.0",
    "feed_forward.w1": "feed_forward.linear_1",
    "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3",
    "adaLN_modulation.1": "norm1.linear",
}
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
RUNS = ("layers.{}.", "noise_refiner.{}.", "context_refiner.{}.")
NAMES = Names(
    native=(
        *(row for run in RUNS for row in renamed(run, run, BLOCK)),
        *(Native(f"{run}attention.qkv", tuple(run + m for m in QKV), "square first") for run in RUNS),
        *renamed(
            "",
            "",
            {
                "x_embedder": "",
                "cap_embedder.1": "time_caption_embed.caption_embedder.1",
                "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
                "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
                "final_layer.adaLN_modulation.1": "norm_out.linear_1",
                "final_layer.linear": "norm_out.linear_2",
            },
        ),
    ),
    kohya="native",
    architecture="lumina-2",
    aliases=("lumina",),
    version="lumina2",
)


class Lumina2Options(Options):
    """Settings of Lumina-Image 2.0."""

    system_prompt: str = setting(SYSTEM_PROMPT, "What the text encoder reads before every caption and prompt")
    max_tokens: int = setting(256, "Length to which captions with their system prompt are padded", ge=1, le=512)


@register
class Lumina2(Family):
    """Rectified flow, in a network that counts time from noise to data and answers data - noise."""

    name = "lumina2"
    title = "Lumina-Image 2.0"
    pipelines = {"generate": "Lumina2Pipeline"}
    accepts = ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")
    text_parts = ("tokenizer", "text_encoder")
    sources = {"2.0": "Alpha-VLLM/Lumina-Image-2.0", "neta": "terminusresearch/neta-lumina-v1"}
    resolution = 1024
    guidance = 4.0
    timesteps = LogitNormal()
    # Captions of a batch end at different places: the picture follows each at once, and what is left is masked.
    blocks = (Blocks("layers", text="before", aligned=(Aligned("attention_mask"), Aligned("image_rotary_emb"))),)
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    names = NAMES
    licence = "Apache-2.0; text encoder: Gemma Terms of Use"
    size = "2.6B"
    encoders = "Gemma 2 2B"
    Options = Lumina2Options

    def pipe(self, parts: Parts) -> Any:
        """See `Family.pipe`; the pipeline takes 8 pixels per latent cell for granted, which the autoencoder knows."""
        pipe = super().pipe(parts)
        if (vae := parts.components.get("vae")) is not None:
            pipe.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        return pipe

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; the pipeline wants an even number of cells."""
        rate = halvings(source)
        return Geometry(multiple=2 * rate, rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; the system prompt counts."""
        told = self.options.system_prompt + BEGIN + caption if caption else ""
        return [("tokenizer", len(tokenizers["tokenizer"](told).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D], mask: [max_tokens], 1 = read, per caption.

        The empty caption stands for no text, before which the pipeline puts no system prompt either.
        """
        pipe, device = self.pipe(parts), parts["text_encoder"].device

        def encode(text: str) -> Cond:
            settings = {"device": device, "max_sequence_length": self.options.max_tokens}
            if text:
                settings |= {"do_classifier_free_guidance": False, "system_prompt": self.options.system_prompt}
                embeds, mask, _, _ = pipe.encode_prompt([text], **settings)
            else:
                _, _, embeds, mask = pipe.encode_prompt([text], **settings)
            return {"embeds": embeds[0], "mask": mask[0]}

        return [encode(p.text) for p in prompts]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"system_prompt": self.options.system_prompt, "max_tokens": self.options.max_tokens}

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`. Where it is dynamic, the pipeline takes the channels for the number of tokens: so do we,
        since it is there that the model is used."""
        return _flow.shift(scheduler, latents.shape[1])

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's time is 1 - t, its answer data - noise."""
        return -denoiser(
            hidden_states=x,
            timestep=1 - t,
            encoder_hidden_states=cond["embeds"],
            encoder_attention_mask=cond["mask"],
            return_dict=False,
            attention_kwargs=None,
        )[0]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""

        def text(cond: Cond, prefix: str) -> dict[str, Tensor]:
            return {
                f"{prefix}prompt_embeds": cond["embeds"][None],
                f"{prefix}prompt_attention_mask": cond["mask"][None],
            }

        if request.negative is None:
            return {**text(request.cond, ""), "guidance_scale": 1.0}
        return {**text(request.cond, ""), **text(request.negative, "negative_"), "guidance_scale": request.guidance}
