"""Wan 2.1 and 2.2: clips of 4k + 1 frames, told the text by UMT5; one network, or two experts for early and late t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, renamed
from ..objective import Flow, Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from ._latents import first_frames, later, pictures

ATTENTION = r"blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|attn2\.add_[kv]_proj)"
FEED_FORWARD = r"blocks\.\d+\.ffn\.net\.(0\.proj|2)"
EMBEDDERS = r"condition_embedder\.(time_proj|(time|text)_embedder\.linear_[12]|image_embedder\.ff\.net\.(0\.proj|2))"
PICTURE_PARTS = ("image_encoder", "image_processor")
"""Only Wan 2.1 reads the first frame by CLIP too."""


ATTENTION_NAMES = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
NORMS = {"norm_q": "norm_q", "norm_k": "norm_k"}
NAMES = Names(
    native=(
        *renamed("blocks.{}.self_attn.", "blocks.{}.attn1.", {**ATTENTION_NAMES, **NORMS}),
        *renamed("blocks.{}.cross_attn.", "blocks.{}.attn2.", {**ATTENTION_NAMES, **NORMS}),
        # 2.1 image-to-video
        *renamed("blocks.{}.cross_attn.", "blocks.{}.attn2.", {"k_img": "add_k_proj", "v_img": "add_v_proj"}),
        *renamed("blocks.{}.", "blocks.{}.", {"ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2", "norm3": "norm2"}),
        *renamed(
            "",
            "",
            {
                "time_embedding.0": "condition_embedder.time_embedder.linear_1",
                "time_embedding.2": "condition_embedder.time_embedder.linear_2",
                "time_projection.1": "condition_embedder.time_proj",
                "text_embedding.0": "condition_embedder.text_embedder.linear_1",
                "text_embedding.2": "condition_embedder.text_embedder.linear_2",
                "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
                "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
                "head.head": "proj_out",
            },
        ),
    ),
    kohya="native",
    architecture="wan2.1",
    aliases=("wan2.2",),
    version="wan",
)


class WanOptions(Options):
    """Settings of Wan."""

    max_tokens: int = setting(512, "Length to which captions are padded", "expert", ge=1, le=512)
    expert: Literal["high", "low"] = setting(
        "high",
        "Which network of a 2.2 A14B model is trained: high draws the first part of every clip (layout and motion), "
        "low the rest (detail); models with one network have only high",
    )
    time_embedding: Literal["model", "2.1"] = setting(
        "model",
        "How the 2.2 5B model is told the time when it generates from text: once per token as it is published, or once "
        "per clip as Wan 2.1, which gives the same answer in less memory",
        "expert",
    )


@register
class Wan(Family):
    """Rectified flow over clips; a picture is a clip of one frame. The two experts of 2.2 are trained one at a time."""

    name = "wan"
    title = "Wan 2.1 and 2.2"
    modality = "video"
    pipelines = {"generate": "WanPipeline", "image_to_video": "WanImageToVideoPipeline"}
    accepts = ("WanPipeline", "WanImageToVideoPipeline")
    text_parts = ("tokenizer", "text_encoder")
    sources = {
        "2.1-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        "2.1-14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        "2.1-i2v-480p": "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        "2.1-i2v-720p": "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
        "2.2-a14b": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        "2.2-i2v-a14b": "Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        "2.2-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    }
    resolution = 640  # about the area of 832x480
    guidance = 5.0
    timesteps = LogitNormal()
    blocks = (Blocks("blocks", aligned=(Aligned("rotary_emb"), Aligned("temb", axes=4))),)
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{EMBEDDERS}",
    }
    names = NAMES
    licence = "Apache-2.0"
    size = "1.3B, 5B, 14B, 2 x 14B"
    encoders = "UMT5-XXL; 2.1 image-to-video: CLIP-H"
    Options = WanOptions

    def __init__(self, options: Options | None = None, task: str = "generate") -> None:
        super().__init__(options, task)
        low = self.options.expert == "low"
        self.denoiser = "transformer_2" if low else "transformer"
        self.further_parts = ("transformer",) if low else ("transformer_2",)
        self.lora_arguments = {"load_into_transformer_2": True} if low else {}
        if task == "image_to_video":
            self.media_parts = ("vae", *PICTURE_PARTS)

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses what the model was not made for."""
        super().accept(source)
        network, per_token = source.config(self.denoiser), bool(source.flags.get("expand_timesteps"))
        if self.options.expert == "low" and not (source.has("transformer_2") and source.flags.get("boundary_ratio")):
            raise UserError(
                f"options.expert is low, but source {source.name} has one network for all t; remove options.expert."
            )
        if network.get("pos_embed_seq_len"):
            raise UserError(
                f"source {source.name} draws clips between a first and a last frame, which is no task here; take an "
                "image-to-video model (2.1-i2v-480p, 2.2-i2v-a14b or 2.2-5b)."
            )
        if network.get("image_dim"):
            self._accept_pictures(source)
        concatenates = network.get("in_channels", 16) > source.config("vae").get("z_dim", 16)
        if self.task == "generate" and concatenates:
            raise UserError(
                f"source {source.name} needs a first frame; set task=image_to_video, or take a text-to-video model."
            )
        if self.task == "image_to_video" and not (concatenates or per_token):
            raise UserError(
                f"source {source.name} is not told a first frame; set task=generate, or take an image-to-video model "
                "(2.1-i2v-480p, 2.2-i2v-a14b or 2.2-5b)."
            )
        if self.options.time_embedding == "2.1" and (self.task != "generate" or not per_token):
            raise UserError(
                "options.time_embedding is '2.1', which only a text-to-video run of the 2.2 5B model can change; "
                "remove it."
            )

    def _accept_pictures(self, source: Source) -> None:
        """What a 2.1 image-to-video network needs: it splits its context 512 tokens from the end."""
        if not source.has("image_encoder") or not source.has("image_processor"):
            raise UserError(f"source {source.name} lacks its image_encoder or image_processor; download it again.")
        if self.options.max_tokens != 512:
            raise UserError(
                f"options.max_tokens is {self.options.max_tokens}, but source {source.name} reads captions of exactly "
                "512 tokens; remove options.max_tokens."
            )

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """See `Family.load`; the picture encoder is loaded where the model has one."""
        return super().load(source, [p for p in parts if p not in PICTURE_PARTS or source.has(p)], dtype)

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        if snr_gamma is not None:
            raise UserError("train.snr_gamma has no meaning for wan; remove it.")
        return Flow()

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; the pipeline takes multiples of 16 only. The 5B was made for 24 frames a second."""
        vae, five = source.config("vae"), bool(source.flags.get("expand_timesteps"))
        rate = vae.get("scale_factor_spatial", 8)
        patch = source.config(self.denoiser).get("patch_size", (1, 2, 2))
        return Geometry(
            multiple=math.lcm(16, rate * patch[1], rate * patch[2]),
            rate=rate,
            frame_step=vae.get("scale_factor_temporal", 4),
            fps=24.0 if five else 16.0,
            frames=121 if five else 81,
        )

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; counted as the pipeline cleans the caption."""
        return [("tokenizer", len(tokenizers["tokenizer"](prompt_clean(caption)).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D], zero behind the caption. per_token (no value, only there or not): the model is told
        the time of every token."""
        embeds, _ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_tokens,
            device=parts["text_encoder"].device,
        )
        more = {"per_token": torch.ones(())} if parts.components.get("expand_timesteps") else {}
        return [{"embeds": e, **more} for e in embeds]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens, "task": self.task}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """[B, C, f, h, w]: the posterior's mean, normalised per channel."""
        assert media.pixels is not None
        pixels = media.pixels if media.pixels.ndim == 5 else media.pixels[:, :, None]
        return self._latents(parts, pixels)

    def _latents(self, parts: Parts, pixels: Tensor) -> Tensor:
        vae = parts["vae"]
        z = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        mean, std = (
            torch.tensor(v).to(z).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std)
        )
        return (z - mean) / std

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """image_to_video. first: [C, 1, h, w] of the first frame (5B), or condition: [C, f, h, w] of the first frame
        followed by grey. image: [N, D], the first frame as CLIP sees it (2.1)."""
        if self.task != "image_to_video":
            return super().media_cond(parts, media)
        first = first_frames(media, self.name)
        if parts.components.get("expand_timesteps"):
            return [{"first": z} for z in self._latents(parts, first[:, :, None])]
        assert media.pixels is not None
        blank = first.new_zeros(*first.shape[:2], media.pixels.shape[2] - 1, *first.shape[2:])
        conds: list[Cond] = [
            {"condition": z} for z in self._latents(parts, torch.cat([first[:, :, None], blank], dim=2))
        ]
        if parts.components.get("image_encoder") is not None:
            seen = self.pipe(parts).encode_image(pictures(first), parts["image_encoder"].device)
            conds = [{**c, "image": i} for c, i in zip(conds, seen, strict=True)]
        return conds

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """Of the scheduler's configuration (3 for 480p, 5 for 720p); the pipeline does not change it with the size."""
        return float(scheduler.get("flow_shift") or scheduler.get("shift") or 1.0)

    def reach(self, source: Source) -> tuple[float, float]:
        """The pipeline asks the high expert down to the boundary, the low one below it."""
        boundary = source.flags.get("boundary_ratio")
        if not boundary:
            return 0.0, 1.0
        return (0.0, float(boundary)) if self.options.expert == "low" else (float(boundary), 1.0)

    def emphasis(self, x: Tensor, cond: Cond) -> Tensor | None:
        """The 5B's given first frame does not count: the pipeline puts the clean one in its place at every step."""
        return later(x) if "first" in cond else None

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        config: Any = getattr(denoiser, "module", denoiser).config  # a distributed wrapper hides it
        times, told = t * 1000, {}
        if "first" in cond:
            x = (1 - later(x)) * cond["first"] + later(x) * x
        if "per_token" in cond and self.options.time_embedding == "model":
            asked = later(x) if "first" in cond else torch.ones_like(x[:, :1])
            times = (asked[:, 0, :, ::2, ::2] * times.view(-1, 1, 1, 1)).flatten(1)
        if "condition" in cond:
            mask = x.new_zeros(len(x), config.in_channels - 2 * x.shape[1], *x.shape[2:])
            mask[:, :, 0] = 1
            x = torch.cat([x, mask, cond["condition"]], dim=1)
        if self.task == "image_to_video":
            told["encoder_hidden_states_image"] = cond.get("image") if config.image_dim else None
        return denoiser(
            hidden_states=x,
            timestep=times,
            encoder_hidden_states=cond["embeds"],
            attention_kwargs=None,
            return_dict=False,
            **told,
        )[0]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""
        said: dict[str, Any] = {"prompt_embeds": request.cond["embeds"][None], "guidance_scale": request.guidance}
        if request.negative is not None and request.guidance > 1.0:
            said["negative_prompt_embeds"] = request.negative["embeds"][None]
        if self.task == "image_to_video":
            said["image"] = request.references[0]
        return said
