"""LTX-Video 0.9: clips of 8k + 1 frames in strongly compressed latents, told the text by T5 and the frame rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import LTXPipeline
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..family import Family, Geometry, Options, Request, register
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from ._clips import asked, compression, normalised, refuse_distilled
from ._flow import bare, objective, shift
from ._latents import first_frames

ATTENTION = r"transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r"transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)"
EMBEDDERS = r"proj_in|proj_out|caption_projection\.linear_[12]|time_embed\.(linear|emb\.timestep_embedder\.linear_[12])"


class LtxOptions(Options):
    """Settings of LTX-Video."""

    max_tokens: int = setting(128, "Length to which T5 captions are padded", ge=1, le=512)


@register
class Ltx(Family):
    """Rectified flow over clips; a picture is a clip of one frame. One network for both tasks."""

    name = "ltx"
    title = "LTX-Video"
    modality = "video"
    pipelines = {"generate": "LTXPipeline", "image_to_video": "LTXImageToVideoPipeline"}
    accepts = ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline")
    text_parts = ("tokenizer", "text_encoder")
    sources = {
        "0.9.0": "Lightricks/LTX-Video",
        "0.9.5": "Lightricks/LTX-Video-0.9.5",
        "0.9.7-13b": "Lightricks/LTX-Video-0.9.7-dev",
    }
    resolution = 608  # about the area of 704x512
    guidance = 3.0
    timesteps = LogitNormal()
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{EMBEDDERS}",
    }
    licence = "LTX-Video Open Weights"
    size = "1.9B, 13B"
    encoders = "T5-XXL"
    Options = LtxOptions

    def __init__(self, options: Options | None = None, task: str = "generate") -> None:
        super().__init__(options, task)
        # only with a first frame does every token have a time of its own
        aligned = (Aligned("image_rotary_emb"), *((Aligned("temb"),) if task == "image_to_video" else ()))
        self.blocks = (Blocks("transformer_blocks", aligned=aligned),)

    def accept(self, source: Source) -> None:
        """See `Family.accept`."""
        super().accept(source)
        refuse_distilled(source, "0.9.7-13b")

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; lengths as the pipeline's own, which takes multiples of 32 pixels."""
        frame_step, rate = compression(source)
        return Geometry(multiple=math.lcm(32, rate), rate=rate, frame_step=frame_step, fps=25.0, frames=161)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`."""
        return [("tokenizer", len(tokenizers["tokenizer"](caption).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [max_tokens, D] of T5; mask: [max_tokens], which of them are the caption's."""
        embeds, mask, _, _ = self.pipe(parts).encode_prompt(
            [p.text for p in prompts],
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_tokens,
            device=parts["text_encoder"].device,
        )
        return [{"embeds": e, "mask": m} for e, m in zip(embeds, mask, strict=True)]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """[B, C, f, h, w]: the posterior's mean, normalised per channel."""
        assert media.pixels is not None
        pixels, vae = media.pixels if media.pixels.ndim == 5 else media.pixels[:, :, None], parts["vae"]
        return normalised(vae, vae.encode(pixels.to(vae.dtype)).latent_dist.mode(), vae.config.scaling_factor)

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """scale: [3], seconds and pixels (down, across) per latent cell. image_to_video: first: [C, 1, h, w]."""
        assert media.pixels is not None
        vae = parts["vae"]
        across = float(vae.spatial_compression_ratio)
        scale = torch.tensor([vae.temporal_compression_ratio / (media.fps or 25.0), across, across])
        conds: list[Cond] = [{"scale": scale.clone()} for _ in media.pixels]
        if self.task == "image_to_video":
            z = vae.encode(first_frames(media, self.name)[:, :, None].to(vae.dtype)).latent_dist.mode()
            for cond, first in zip(conds, normalised(vae, z, 1.0), strict=True):
                cond["first"] = first
        return conds

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`; by tokens, and no further than the scheduler's largest."""
        return shift(scheduler, math.prod(latents.shape[2:]))

    def emphasis(self, x: Tensor, cond: Cond) -> Tensor | None:
        """See `Family.emphasis`; a given first frame does not count."""
        return asked(x) if "first" in cond else None

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; x: [B, C, f, h, w]. A given first frame is clean, and its tokens are told t = 0."""
        config = bare(denoiser).config
        frames, height, width = x.shape[2:]
        patches = (config.patch_size, config.patch_size_t)
        times = t * 1000
        if "first" in cond:
            times = times[:, None] * LTXPipeline._pack_latents(asked(x), *patches)[..., 0]
            x = torch.cat([cond["first"].to(x), x[:, :, 1:]], dim=2)
        out = denoiser(
            hidden_states=LTXPipeline._pack_latents(x, *patches),
            encoder_hidden_states=cond["embeds"],
            timestep=times,
            encoder_attention_mask=cond["mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=tuple(s.view(-1, 1, 1, 1, 1) for s in cond["scale"].unbind(1)),
            attention_kwargs=None,
            return_dict=False,
        )[0]
        return LTXPipeline._unpack_latents(out, frames, height, width, *patches)

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""
        cond, negative = request.cond, request.negative
        said: dict[str, Any] = {"prompt_embeds": cond["embeds"][None], "prompt_attention_mask": cond["mask"][None]}
        if negative is not None and request.guidance > 1.0:
            said["negative_prompt_embeds"] = negative["embeds"][None]
            said["negative_prompt_attention_mask"] = negative["mask"][None]
        if self.task == "image_to_video":
            said["image"] = request.references[0]
        return {**said, "guidance_scale": request.guidance, "frame_rate": request.fps}
