"""Stable Diffusion 3 and 3.5: a two-stream transformer, told the text by two CLIP encoders and, if there, by T5."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, Native, renamed
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Parts, Prompt
from . import _flow, _places
from ._latents import halvings

# 3.5 medium has a second attention, over the picture alone, in some blocks; the last block answers for no text.
ATTENTION = r".*\.attn2?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
FEED_FORWARD = r".*\.ff(_context)?\.net\.(0\.proj|2)"
MODULATION = r"transformer_blocks\.\d+\.norm1(_context)?\.linear"
DISTILLED = {"stabilityai/stable-diffusion-3.5-large-turbo": "3.5-large"}
WIDTH = "joint_attention_dim"


X, CONTEXT, BLOCK = "joint_blocks.{}.x_block.", "joint_blocks.{}.context_block.", "transformer_blocks.{}."
NAMES = Names(
    native=(
        *renamed(
            X,
            BLOCK,
            {
                "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
                "attn.proj": "attn.to_out.0",
                "attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),  # 3.5 medium
                "attn2.proj": "attn2.to_out.0",
                "mlp.fc1": "ff.net.0.proj",
                "mlp.fc2": "ff.net.2",
                "adaLN_modulation.1": "norm1.linear",
            },
        ),
        *renamed(
            CONTEXT,
            BLOCK,
            {
                "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                "attn.proj": "attn.to_add_out",
                "mlp.fc1": "ff_context.net.0.proj",
                "mlp.fc2": "ff_context.net.2",
            },
        ),
        Native(CONTEXT + "adaLN_modulation.1", (BLOCK + "norm1_context.linear",), swapped=True),  # in the last block
        Native("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
        *renamed(
            "",
            "",
            {
                "x_embedder.proj": "pos_embed.proj",
                "context_embedder": "",
                "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
                "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
                "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
                "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
                "final_layer.linear": "proj_out",
            },
        ),
    ),
    kohya="native",
    text={
        "text_encoder": ("lora_te1_", "text_encoders.clip_l.transformer."),
        "text_encoder_2": ("lora_te2_", "text_encoders.clip_g.transformer."),
        "text_encoder_3": ("lora_te3_", "text_encoders.t5xxl.transformer."),
    },
    architecture="stable-diffusion-3-medium",
    aliases=(
        "stable-diffusion-3-5-medium",
        "stable-diffusion-3-5-large",
        "stable-diffusion-v3-medium",
        "stable-diffusion-v3.5",
        "stable-diffusion-3",
    ),
    version="medium",
)


class StableDiffusion3Options(Options):
    """Settings of Stable Diffusion 3."""

    max_tokens: int = setting(256, "Length to which T5 captions are padded", ge=1, le=512)


@register
class StableDiffusion3(Family):
    """Rectified flow. The text is a sequence of CLIP's 77 tokens, then T5's; without T5 its part is zeros."""

    name = "sd3"
    title = "Stable Diffusion 3 and 3.5"
    pipelines = {"generate": "StableDiffusion3Pipeline"}
    accepts = ("StableDiffusion3Pipeline",)
    text_parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3")
    sources = {
        "medium": "stabilityai/stable-diffusion-3-medium-diffusers",
        "3.5-medium": "stabilityai/stable-diffusion-3.5-medium",
        "3.5-large": "stabilityai/stable-diffusion-3.5-large",
    }
    resolution = 1024
    guidance = 7.0
    timesteps = LogitNormal()
    blocks = (Blocks("transformer_blocks", output=1),)
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    names = NAMES
    trainable_text = {"text_encoder": 0, "text_encoder_2": 0}
    licence = "Stability AI Community"
    size = "2.0B, 2.5B (3.5 medium), 8.1B (3.5 large)"
    encoders = "CLIP-L, CLIP-G, T5-XXL"
    Options = StableDiffusion3Options

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses the model distilled for few steps."""
        super().accept(source)
        if (base := DISTILLED.get(source.hub_id or "")) is not None:
            raise UserError(
                f"source {source.name} is distilled for few steps, which training would undo; train source {base} "
                "and use the result with the distilled model."
            )

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """See `Family.load`; notes the width of the text sequence, which zeros in T5's place need."""
        loaded = super().load(source, parts, dtype)
        loaded.components[WIDTH] = source.config("transformer").get(WIDTH, 4096)
        return loaded

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; the network cuts latents into patches."""
        rate = halvings(source)
        return Geometry(multiple=source.config("transformer").get("patch_size", 2) * rate, rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; all three tokenizers' tokens are in the sequence."""
        counts = [(name, len(tok(caption).input_ids), tok.model_max_length) for name, tok in tokenizers.items()]
        return [(n, has, self.options.max_tokens if n == "tokenizer_3" else takes) for n, has, takes in counts]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [77 + max_tokens, D], pooled: [P1 + P2] per caption."""
        pipe = self.pipe(parts)
        if pipe.transformer is None:  # the pipeline asks it how wide the zeros in T5's place must be
            pipe.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=parts[WIDTH]))
        embeds, _, pooled, _ = pipe.encode_prompt(
            [p.text for p in prompts],
            None,
            None,
            device=parts["text_encoder"].device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_tokens,
        )
        return [{"embeds": e, "pooled": p} for e, p in zip(embeds, pooled, strict=True)]

    def retell(self, parts: Parts, captions: Sequence[str], cond: Cond) -> Cond:
        """See `Family.retell`: CLIP's tokens, padded to T5's width, and the summaries; T5's tokens stay."""
        pipe, device = self.pipe(parts), parts["text_encoder"].device
        told = [pipe._get_clip_prompt_embeds(list(captions), device=device, clip_model_index=i) for i in (0, 1)]
        clip, cached = torch.cat([embeds for embeds, _ in told], -1), cond["embeds"]
        clip = nn.functional.pad(clip, (0, cached.shape[-1] - clip.shape[-1]))
        embeds = torch.cat([clip, cached[:, clip.shape[1] :]], 1)
        return {**cond, "embeds": embeds, "pooled": torch.cat([pooled for _, pooled in told], -1)}

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens}

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """Static in all published models; by the number of tokens (2x2 cells) where the scheduler says so."""
        return _flow.shift({"max_shift": 1.16, **scheduler}, (latents.shape[-2] // 2) * (latents.shape[-1] // 2))

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        config = _flow.bare(denoiser).config
        if config.pos_embed_max_size:
            _places.must_fit(x, config.pos_embed_max_size * config.patch_size, self.name)
        return denoiser(
            hidden_states=x,
            timestep=t * 1000,
            encoder_hidden_states=cond["embeds"],
            pooled_projections=cond["pooled"],
            joint_attention_kwargs=None,
            return_dict=False,
        )[0]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""
        names = {"embeds": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
        text = {name: request.cond[key][None] for key, name in names.items()}
        if request.negative is None:
            return {**text, "guidance_scale": 1.0}
        text |= {f"negative_{name}": request.negative[key][None] for key, name in names.items()}
        return {**text, "guidance_scale": request.guidance}
