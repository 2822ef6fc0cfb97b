"""FLUX.1: a two-stream, then one-stream transformer over packed 2x2 patches, told the text by T5 and pooled CLIP.

Kontext (task edit) has the packed latents of a reference picture behind those of the picture it draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..control import CONTROLNET, Branch, Control, Widened
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..libraries import diffusers
from ..native import Names
from ..objective import Objective
from ..recipe import LogitNormal, Recipe, setting
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from . import _flow, _flux, _references
from ._latents import halvings

ATTENTION = r".*\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
# One-stream blocks have their feed-forward in proj_mlp and proj_out; the network's last layer, also proj_out, is left.
FEED_FORWARD = r".*\.ff(_context)?\.net\.(0\.proj|2)|single_transformer_blocks\.\d+\.proj_(mlp|out)"
MODULATION = r".*_blocks\.\d+\.norm(1|1_context)?\.linear"
# The attention mask of `t5_mask`, [B, 1, 1, tokens], is an entry of the second.
ALIGNED = (Aligned("image_rotary_emb", dims=(0,)), Aligned("joint_attention_kwargs", dims=(3,)))
CHANNELS = (("transformer", "in_channels"), ("vae", "latent_channels"))
KONTEXT = "FluxKontextPipeline"
OTHERS = {
    "FluxFillPipeline": "fills masked parts of pictures",
    "FluxControlPipeline": "draws along edges or depth",
    "FluxPriorReduxPipeline": "turns pictures into prompts",
}


NAMES = Names(
    native=(
        *_flux.BLOCKS,
        *_flux.MODULATION,
        *_flux.ENDS,
        _flux.LAST,
        *_flux.embedder("time_in", "time_text_embed.timestep_embedder"),
        *_flux.embedder("vector_in", "time_text_embed.text_embedder"),
        *_flux.embedder("guidance_in", "time_text_embed.guidance_embedder"),
    ),
    kohya="native",
    kohya_lacks=r"final_layer\..*",
    text={
        "text_encoder": ("lora_te1_", "text_encoders.clip_l.transformer."),
        "text_encoder_2": ("lora_te3_", "text_encoders.t5xxl.transformer."),
    },
    text_aliases={"lora_te2_": "text_encoder_2"},
    architecture="flux-1-dev",
    aliases=("Flux.1-dev", "Flux.1-fill-dev", "flux-1-schnell", "flux-1"),
    version="flux1",
)


def _branch(parts: Parts, blocks: Sequence[int]) -> Any:
    config: Any = parts.network.config
    return diffusers.FluxControlNetModel.from_transformer(
        parts.network,
        num_layers=blocks[0],
        num_single_layers=blocks[1],
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
    )


def _ask(parts: Parts, told: dict[str, Any], picture: Tensor, strength: float) -> dict[str, Any]:
    """As `FluxControlNetPipeline` with one branch of one kind of control."""
    branch = parts[CONTROLNET]
    names = ("hidden_states", "timestep", "pooled_projections", "encoder_hidden_states", "txt_ids", "img_ids")
    two_stream, one_stream = branch(
        **{name: told[name] for name in names},
        controlnet_cond=FluxPipeline._pack_latents(picture, *picture.shape),
        controlnet_mode=None,
        conditioning_scale=strength,
        guidance=told["guidance"] if branch.config.guidance_embeds else None,
        joint_attention_kwargs=told["joint_attention_kwargs"],
        return_dict=False,
    )
    return {
        "controlnet_block_samples": two_stream,
        "controlnet_single_block_samples": one_stream,
        "controlnet_blocks_repeat": False,
    }


def _refuses(parts: Parts, config: dict[str, Any]) -> str | None:
    own: Any = parts.network.config
    if config.get("num_mode") is not None:
        return "it is a union of several kinds of control (num_mode)"
    if config.get("conditioning_embedding_channels") is not None:
        return "it takes pixels instead of latents (conditioning_embedding_channels)"
    if config.get("guidance_embeds") and not own.guidance_embeds:
        return "it wants a guidance embedding, which the base has not"
    for name in ("in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim"):
        if config.get(name, own[name]) != own[name]:
            return f"its {name} is {config[name]}, that of the base {own[name]}"
    return None


def _beside(x: Tensor, control: Tensor) -> Tensor:
    return torch.cat([x, FluxPipeline._pack_latents(control, *control.shape)], 2)


CONTROL = Control(
    "latents",
    Branch(
        "FluxControlNetModel",
        "FluxControlNetPipeline",
        "control_image",
        _branch,
        _ask,
        (("transformer_blocks", 4), ("single_transformer_blocks", 10)),
        _refuses,
    ),
    Widened("x_embedder", "FluxControlPipeline", _beside),
)


class Flux1Options(Options):
    """Settings of FLUX.1."""

    max_tokens: int = setting(512, "Length to which T5 captions are padded", ge=1, le=512)
    guidance: float = setting(
        1.0, "Value of the distilled guidance embedding while training; models without one ignore it", "expert", ge=0
    )
    t5_mask: bool = setting(
        False,
        "Mask the padding of T5 captions, which the original model attends; samples are drawn without the padding too",
        "expert",
    )


@register
class Flux1(Family):
    """Rectified flow; t moves towards noise with the size of the picture."""

    name = "flux1"
    title = "FLUX.1"
    pipelines = {"generate": "FluxPipeline", "edit": KONTEXT}
    accepts = ("FluxPipeline", KONTEXT)
    text_parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    sources = {
        "dev": "black-forest-labs/FLUX.1-dev",
        "schnell": "black-forest-labs/FLUX.1-schnell",
        "krea": "black-forest-labs/FLUX.1-Krea-dev",
        "kontext": "black-forest-labs/FLUX.1-Kontext-dev",
    }
    resolution = 1024
    guidance = 3.5
    control = CONTROL
    timesteps = LogitNormal()
    blocks = (
        Blocks("transformer_blocks", output=1, aligned=ALIGNED),
        Blocks("single_transformer_blocks", output=1, aligned=ALIGNED),
    )
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    names = NAMES
    trainable_text = {"text_encoder": 0}
    licence = "FLUX.1 [dev] Non-Commercial; [schnell] Apache-2.0"
    size = "11.9B"
    encoders = "CLIP-L, T5-XXL"
    Options = Flux1Options

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses FLUX.1's tools, and editing with a model that was not made for it."""
        if (does := OTHERS.get(source.pipeline)) is not None:
            raise UserError(
                f"source {source.name} is the FLUX.1 model that {does}, which flux1 does not train; take one of "
                f"{', '.join(self.sources)}."
            )
        super().accept(source)
        if self.task == "edit" and source.pipeline != KONTEXT:
            raise UserError(
                f"task is edit, but source {source.name} draws from text alone; take source kontext, or remove `task`."
            )
        takes, gives = (source.config(part).get(key) for part, key in CHANNELS)
        if takes and gives and takes != 4 * gives:
            raise UserError(
                f"source {source.name}: the transformer takes {takes} channels, but 2x2 cells of its vae have "
                f"{4 * gives}; it is a tool of FLUX.1 (fill, depth, edges), so take one of {', '.join(self.sources)}."
            )

    def refuses(self, recipe: Recipe) -> str | None:
        """See `Family.refuses`."""
        if recipe.adapter.kind == "controlnet" and recipe.adapter.form == "branch" and self.options.t5_mask:
            return (
                "options.t5_mask hides the padding of captions from the network, but the library's FLUX ControlNet "
                "cannot; leave options.t5_mask out, or set adapter.form: lora."
            )
        return None

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; latents are packed in 2x2 patches."""
        rate = halvings(source)
        return Geometry(multiple=2 * rate, rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; CLIP's limit is left out, since only its pooled summary is used."""
        return [("tokenizer_2", len(tokenizers["tokenizer_2"](caption).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D] of T5, pooled: [P] of CLIP per caption; mask: bool [max_tokens] with `t5_mask`."""
        texts, limit = [p.text for p in prompts], self.options.max_tokens
        embeds, pooled, _ = self.pipe(parts).encode_prompt(
            texts, device=parts["text_encoder_2"].device, max_sequence_length=limit
        )
        conds = [{"embeds": e, "pooled": p} for e, p in zip(embeds, pooled, strict=True)]
        if not self.options.t5_mask:
            return conds
        tokens = parts["tokenizer_2"](
            texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        return [{**c, "mask": m.bool()} for c, m in zip(conds, tokens.attention_mask, strict=True)]

    def retell(self, parts: Parts, captions: Sequence[str], cond: Cond) -> Cond:
        """See `Family.retell`: CLIP's summary; T5's tokens stay."""
        pooled = self.pipe(parts)._get_clip_prompt_embeds(list(captions), device=parts["text_encoder"].device)
        return {**cond, "pooled": pooled}

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens, "t5_mask": self.options.t5_mask}

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """Task edit: reference_0 [C, h, w], for items that have one (Kontext also draws without)."""
        if self.task != "edit":
            return super().media_cond(parts, media)
        if len(media.references) > 1:
            raise UserError(
                f"Kontext edits one reference picture, but an item has {len(media.references)}; leave one in "
                "data.reference, or join them into one picture."
            )
        return _references.encoded(media, lambda m: self.encode_media(parts, m))

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """See `Family.collate`."""
        return _references.collate(conds)

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """exp(mu), mu linear in the number of tokens as in the pipeline.

        Unlike there, mu stops at max_shift: the line was drawn for up to max_image_seq_len tokens, and beyond, exp(mu)
        runs away (at 2048², half of all draws would lie above t = 0.96).
        """
        return _flow.shift(scheduler, (latents.shape[-2] // 2) * (latents.shape[-1] // 2))

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        b, _, h, w = x.shape
        embeds, pictures = cond["embeds"], [x, *_references.listed(cond)]
        hidden_states = torch.cat([FluxPipeline._pack_latents(p, *p.shape) for p in pictures], 1)
        ids = [
            FluxPipeline._prepare_latent_image_ids(b, p.shape[-2] // 2, p.shape[-1] // 2, x.device, x.dtype)
            for p in pictures
        ]
        for reference in ids[1:]:
            reference[..., 0] = 1
        attention = {}
        if "mask" in cond:
            # keys only: a query without any key would have no answer, and nobody reads those of padding
            seen = torch.cat([cond["mask"], cond["mask"].new_ones(hidden_states.shape[:2])], 1)
            attention = {"attention_mask": seen[:, None, None]}
        out = denoiser(
            hidden_states=hidden_states,
            timestep=t,
            guidance=torch.full_like(t, self.options.guidance) if _flow.bare(denoiser).config.guidance_embeds else None,
            pooled_projections=cond["pooled"],
            encoder_hidden_states=embeds,
            txt_ids=torch.zeros(embeds.shape[1], 3, device=x.device, dtype=x.dtype),
            img_ids=torch.cat(ids),
            joint_attention_kwargs=attention,
            return_dict=False,
        )[0]
        return FluxPipeline._unpack_latents(out[:, : (h // 2) * (w // 2)], h, w, 1)

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`: the guidance embedding where there is one, else real guidance away from the negative.

        With `t5_mask` the padding is cut off, which is the same as masking it. The pipeline wants the negative to be as
        long as the prompt: the shorter of the two keeps padding up to the length of the longer.
        """
        text = {"prompt_embeds": request.cond["embeds"][None], "pooled_prompt_embeds": request.cond["pooled"][None]}
        masks = [c["mask"] for c in (request.cond, request.negative) if c and "mask" in c]
        length = max((int(m.sum()) for m in masks), default=text["prompt_embeds"].shape[1])
        text["prompt_embeds"] = text["prompt_embeds"][:, :length]
        if self.task == "edit":
            text |= self._reference(request)
        if parts["transformer"].config.guidance_embeds:
            return {**text, "guidance_scale": request.guidance}
        if request.negative is None or request.guidance <= 1.0:
            return text
        negative = {
            "negative_prompt_embeds": request.negative["embeds"][None, :length],
            "negative_pooled_prompt_embeds": request.negative["pooled"][None],
        }
        return {**text, **negative, "true_cfg_scale": request.guidance}

    def _reference(self, request: Request) -> dict[str, Any]:
        """Kontext's arguments: it draws at the asked size instead of about a megapixel, and sees the reference at no
        more pixels than it draws (its own way is to bring every reference to about a megapixel)."""
        area = request.width * request.height
        if not request.references:
            return {"max_area": area}
        return {"image": _references.shrunk(request.references[0], area), "max_area": area, "_auto_resize": False}

    def wants_negative(self, source: Source, guidance: float) -> bool:
        """See `Family.wants_negative`; distilled guidance needs none."""
        return guidance > 1.0 and not source.config("transformer").get("guidance_embeds", False)
