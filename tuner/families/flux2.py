"""FLUX.2: dev, told the text by Mistral, and klein, by Qwen; a transformer over normalised 2x2 cells of latents.

Reference pictures (task edit) stand behind the drawn one in the same sequence, each at a time of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from torch import Tensor, nn
from transformers import Qwen2Tokenizer

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..libraries import diffusers
from ..native import Names, renamed
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from . import _flow, _flux, _references
from ._latents import halvings

# One-stream blocks make queries, keys, values and the feed-forward's input in one layer, and their output in another.
ATTENTION = (
    r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
    r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)"
)
FEED_FORWARD = r"transformer_blocks\.\d+\.ff(_context)?\.linear_(in|out)"
MODULATION = r"(double_stream_modulation_(img|txt)|single_stream_modulation)\.linear"
ROTARY = (Aligned("image_rotary_emb", dims=(0,)),)
LAYERS = {"Flux2Pipeline": (10, 20, 30), "Flux2KleinPipeline": (9, 18, 27)}
"""The text encoder's layers whose outputs are the text, as the pipelines have them."""
SMALLEST = 64
"""Pixels on a side below which the pipelines refuse a reference picture."""


NAMES = Names(
    native=(
        *_flux.TWO_STREAM_ATTENTION,
        *renamed(
            _flux.DOUBLE,
            _flux.TWO_STREAMS,
            {
                "img_mlp.0": "ff.linear_in",
                "img_mlp.2": "ff.linear_out",
                "txt_mlp.0": "ff_context.linear_in",
                "txt_mlp.2": "ff_context.linear_out",
            },
        ),
        *renamed(_flux.SINGLE, _flux.ONE_STREAM, {"linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out"}),
        *_flux.ENDS,
        _flux.LAST,
        *_flux.embedder("time_in", "time_guidance_embed.timestep_embedder"),
        *_flux.embedder("guidance_in", "time_guidance_embed.guidance_embedder"),
        *renamed(
            "",
            "",
            {
                "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
                "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
                "single_stream_modulation.lin": "single_stream_modulation.linear",
            },
        ),
    ),
    kohya="native",
    architecture="Flux.2-dev",
    aliases=("Flux.2", "Flux.2-klein-4b", "Flux.2-klein-9b"),
    version="flux_2_dev",
)


class Flux2Options(Options):
    """Settings of FLUX.2."""

    max_tokens: int = setting(512, "Length to which captions are padded, with the template around them", ge=1, le=2048)
    guidance: float = setting(
        1.0, "Value of dev's distilled guidance embedding while training; klein has none", "expert", ge=0
    )
    text_layers: tuple[int, ...] = setting(
        (), "Layers of the text encoder whose outputs are the text; empty takes the pipeline's own", "expert"
    )


@register
class Flux2(Family):
    """Rectified flow; t moves towards noise with the size of the picture. The padding of captions is attended."""

    name = "flux2"
    title = "FLUX.2"
    pipelines = {"generate": "Flux2Pipeline", "edit": "Flux2Pipeline"}
    accepts = tuple(LAYERS)
    text_parts = ("tokenizer", "text_encoder")
    sources = {
        "dev": "black-forest-labs/FLUX.2-dev",
        "klein-4b": "black-forest-labs/FLUX.2-klein-base-4B",
        "klein-9b": "black-forest-labs/FLUX.2-klein-base-9B",
    }
    resolution = 1024
    guidance = 4.0
    timesteps = LogitNormal()
    blocks = (
        Blocks("transformer_blocks", output=1, aligned=ROTARY),
        Blocks("single_transformer_blocks", text="before", aligned=ROTARY),
    )
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    names = NAMES
    licence = "FLUX [dev] Non-Commercial (dev, klein 9B); Apache-2.0 (klein 4B)"
    size = "32.2B, 9.1B and 3.9B (klein)"
    encoders = "Mistral-Small-3.2 (dev), Qwen3 (klein)"
    Options = Flux2Options

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses distilled models, and text layers that the encoder has not."""
        if source.pipeline == "Flux2KleinKVPipeline" or source.index.get("is_distilled"):
            raise UserError(
                f"source {source.name} is distilled for few steps, which training would undo; train the base model "
                "(source klein-4b or klein-9b) and use the result with the distilled one."
            )
        super().accept(source)
        config = source.config("text_encoder")
        has = config.get("text_config", config).get("num_hidden_layers")
        layers = self.options.text_layers or LAYERS[source.pipeline]
        if has is not None and not all(0 <= layer <= has for layer in layers):
            raise UserError(
                f"options.text_layers is {', '.join(map(str, layers))} (empty takes the pipeline's own), but the text "
                f"encoder of source {source.name} has the layers 0 to {has}; name those that this model was made with."
            )

    def pipe(self, parts: Parts) -> Any:
        """See `Family.pipe`; dev and klein have their own."""
        return self.assemble(getattr(diffusers, parts.pipeline), parts)

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; a cell of our latents is 2x2 of the autoencoder's."""
        rate = 2 * halvings(source)
        return Geometry(multiple=rate, rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; the template around the caption counts."""
        tokenizer = tokenizers["tokenizer"]
        if isinstance(tokenizer, Qwen2Tokenizer):
            messages = [{"role": "user", "content": caption}]
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
            has = len(tokenizer(text).input_ids)
        else:
            messages = format_input([caption], SYSTEM_MESSAGE)
            tokens = tokenizer.apply_chat_template(
                messages, add_generation_prompt=False, tokenize=True, return_dict=True
            )
            has = len(tokens["input_ids"][0])
        return [("tokenizer", has, self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, layers * D] per caption."""
        embeds, _ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            device=parts["text_encoder"].device,
            max_sequence_length=self.options.max_tokens,
            text_encoder_out_layers=self.options.text_layers or LAYERS[parts.pipeline],
        )
        return [{"embeds": e} for e in embeds]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens, "text_layers": list(self.options.text_layers)}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """[B, 4C, h, w]: 2x2 cells of the autoencoder as one, normalised by its running statistics."""
        assert media.pixels is not None
        vae = parts["vae"]
        z = Flux2Pipeline._patchify_latents(vae.encode(media.pixels.to(vae.dtype)).latent_dist.mode())
        mean, variance = (v.view(1, -1, 1, 1).to(z) for v in (vae.bn.running_mean, vae.bn.running_var))
        return (z - mean) / torch.sqrt(variance + vae.config.batch_norm_eps)

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """Task edit: reference_0, reference_1, ...: [4C, h, w] per item, of as many as it has."""
        if self.task != "edit":
            return super().media_cond(parts, media)
        return _references.encoded(media, lambda m: self.encode_media(parts, m))

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """See `Family.collate`."""
        return _references.collate(conds)

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """exp(mu), mu linear in the number of tokens: the pipeline's line for 200 steps, which is FLUX.1's too.

        For fewer steps the pipeline raises mu up to 4300 tokens, which makes up for coarse steps and says nothing about
        what to train.
        """
        if not scheduler.get("use_dynamic_shifting", False):
            return float(scheduler.get("shift", 1.0))
        mu = 0.00016927 * latents.shape[-2] * latents.shape[-1] + 0.45666666
        return math.exp(mu) if scheduler.get("time_shift_type", "exponential") == "exponential" else mu

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        b, _, h, w = x.shape
        embeds, references = cond["embeds"], _references.listed(cond)
        ids = [Flux2Pipeline._prepare_latent_ids(x)]
        if references:
            ids.append(Flux2Pipeline._prepare_image_ids([r[:1] for r in references]).expand(b, -1, -1))
        out = denoiser(
            hidden_states=torch.cat([Flux2Pipeline._pack_latents(p) for p in (x, *references)], 1),
            timestep=t,
            guidance=torch.full_like(t, self.options.guidance) if _flow.bare(denoiser).config.guidance_embeds else None,
            encoder_hidden_states=embeds,
            txt_ids=Flux2Pipeline._prepare_text_ids(embeds).to(x.device),
            img_ids=torch.cat(ids, 1).to(x.device),
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]
        return out[:, : h * w].permute(0, 2, 1).unflatten(2, (h, w))

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`: dev's guidance embedding, or klein's real guidance away from the negative."""
        arguments: dict[str, Any] = {"prompt_embeds": request.cond["embeds"][None], "guidance_scale": request.guidance}
        if self.task == "edit" and request.references:
            arguments["image"] = [_references.enlarged(p, SMALLEST) for p in request.references]
        if parts.pipeline != "Flux2KleinPipeline":
            return arguments
        if request.negative is None:
            return {**arguments, "guidance_scale": 1.0}
        return {**arguments, "negative_prompt_embeds": request.negative["embeds"][None]}

    def wants_negative(self, source: Source, guidance: float) -> bool:
        """See `Family.wants_negative`; dev's distilled guidance needs none."""
        return guidance > 1.0 and source.pipeline == "Flux2KleinPipeline"
