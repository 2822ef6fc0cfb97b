"""Kandinsky 5.0 Video: a transformer with cross-attention to Qwen2.5-VL's text, and a summary of CLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import Kandinsky5T2VPipeline
from torch import Tensor, nn

from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from . import _flow, _kandinsky5, _qwen_vl
from ._latents import first_frames

BY_TASK = {"generate": ("Kandinsky5T2VPipeline",), "image_to_video": ("Kandinsky5I2VPipeline",)}
EVENED = 4
"""Latent frames whose brightness the image_to_video pipeline evens to those that follow: it fails without any."""


class Kandinsky5VideoOptions(Options):
    """Settings of Kandinsky 5.0 Video."""

    max_tokens: int = setting(512, "Length to which captions are cut", ge=16, le=1024)


@register
class Kandinsky5Video(Family):
    """Rectified flow on clips. Positions are scaled for 480p (both sides 480 to 854 pixels) or for anything else.

    image_to_video: the first latent frame is the given picture, without noise, and its answer is not used.
    """

    name = "kandinsky5_video"
    title = "Kandinsky 5.0 Video"
    modality = "video"
    pipelines = {"generate": "Kandinsky5T2VPipeline", "image_to_video": "Kandinsky5I2VPipeline"}
    accepts = ("Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline")
    text_parts = _kandinsky5.TEXT_PARTS
    sources = {
        "lite-sft-5s": "kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers",
        "lite-pretrain-5s": "kandinskylab/Kandinsky-5.0-T2V-Lite-pretrain-5s-Diffusers",
        "pro-sft-5s": "kandinskylab/Kandinsky-5.0-T2V-Pro-sft-5s-Diffusers",
        "pro-pretrain-5s": "kandinskylab/Kandinsky-5.0-T2V-Pro-pretrain-5s-Diffusers",
        "i2v-lite-5s": "kandinskylab/Kandinsky-5.0-I2V-Lite-5s-Diffusers",
        "i2v-pro-sft-5s": "kandinskylab/Kandinsky-5.0-I2V-Pro-sft-5s-Diffusers",
    }
    resolution = 512
    guidance = 5.0
    timesteps = LogitNormal()
    blocks = _kandinsky5.BLOCKS
    targets = _kandinsky5.TARGETS
    names = _kandinsky5.NAMES
    licence = "MIT"
    size = "2.0B (Lite), 19B (Pro)"
    encoders = "Qwen2.5-VL-7B, CLIP-L"
    Options = Kandinsky5VideoOptions

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses models of the other task, and those of sparse attention."""
        super().accept(source)
        _qwen_vl.refuse_other_task(source, self.task, BY_TASK)
        if source.config("transformer").get("attention_type", "regular") != "regular":
            raise UserError(
                f"source {source.name} is a model of sparse attention ({source.config('transformer')['attention_type']}"
                ", made for 10 s or HD), which cannot be trained here; choose one of 5 s, such as lite-sft-5s."
            )
        if self.task == "image_to_video" and not source.config("transformer").get("visual_cond"):
            raise UserError(
                f"source {source.name} has no channels for a first frame (visual_cond); choose an image-to-video model."
            )

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`."""
        vae, patch = source.config("vae"), source.config("transformer").get("patch_size", (1, 2, 2))
        rate = vae.get("spatial_compression_ratio", 8)
        step = vae.get("temporal_compression_ratio", 4)
        return Geometry(multiple=rate * patch[-1], rate=rate, frame_step=step, fps=24.0, frames=121)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`. CLIP's limit is left out, since only its summary is used."""
        count = _kandinsky5.tokens(tokenizers["tokenizer"], self.pipeline, caption)
        return [("tokenizer", count, self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """See `_kandinsky5.encode`."""
        return _kandinsky5.encode(self.pipe(parts), [p.text for p in prompts], self.options.max_tokens)

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """See `Family.encode_media`: [B, C, f, h, w]."""
        assert media.pixels is not None
        pixels = media.pixels if media.pixels.ndim == 5 else media.pixels[:, :, None]
        return super().encode_media(parts, Media(pixels))

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """size: [2] height and width in pixels, which scale the positions. image_to_video: first: latents [C, 1, h, w]
        of the first frame, encoded as a clip of its own: the posterior's mean, from which the pipeline draws."""
        assert media.pixels is not None
        height, width = media.pixels.shape[-2:]
        named = {"size": torch.tensor([[height, width]] * len(media.pixels))}
        if self.task == "image_to_video":
            first = first_frames(media, self.name)
            if media.references:
                rate = parts["vae"].config.spatial_compression_ratio
                first = _qwen_vl.resized(first, width, height, rate)
            named["first"] = self.encode_media(parts, Media(first))
        return _qwen_vl.per_item(named, media)

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """See `Family.collate`: captions are as long as the longest of them."""
        return _qwen_vl.alike(_kandinsky5.shortened(conds), "first frames")

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`; the same for all sizes."""
        return _flow.shift({**scheduler, "use_dynamic_shifting": False}, 0)

    def emphasis(self, x: Tensor, cond: Cond) -> Tensor | None:
        """See `Family.emphasis`: 0 on the given first frame."""
        if self.task != "image_to_video":
            return None
        weights = torch.ones_like(x[:1, :1, :, :1, :1])
        weights[:, :, 0] = 0
        return weights

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        mask = torch.zeros_like(x[:, :1])
        seen = x
        if self.task == "image_to_video":
            seen = torch.cat([cond["first"].to(x.dtype), x[:, :, 1:]], 2)
            mask[:, :, 0] = 1
        if _flow.bare(denoiser).config.visual_cond:
            seen = torch.cat([seen, torch.zeros_like(x), mask], 1)
        height, width = cond["size"][0].tolist()
        scale = Kandinsky5T2VPipeline._get_scale_factor(None, height, width)
        return _kandinsky5.ask(denoiser, seen, t, cond, scale)

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""
        arguments = {**_kandinsky5.told(request.cond), "guidance_scale": max(request.guidance, 1.0)}
        if request.negative is not None:
            arguments |= _kandinsky5.told(request.negative, "negative_")
        if self.task == "image_to_video":
            if not request.references:
                raise UserError("task is image_to_video, but a sample has no first frame; set validate.references.")
            least = EVENED * parts["vae"].config.temporal_compression_ratio + 1
            if request.frames < least:
                raise UserError(
                    f"validate.frames is {request.frames}, but the image-to-video pipeline of {self.title} draws no "
                    f"fewer than {least} frames; raise it."
                )
            arguments["image"] = request.references[0]
        return arguments
