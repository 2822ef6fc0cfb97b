"""Kandinsky 5.0 Image: a transformer with cross-attention to Qwen2.5-VL's text, and a summary of CLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Drawn, Media, Parts, Prompt
from . import _flow, _kandinsky5, _qwen_vl
from ._latents import halvings

BY_TASK = {"generate": ("Kandinsky5T2IPipeline",), "edit": ("Kandinsky5I2IPipeline",)}


class Kandinsky5ImageOptions(Options):
    """Settings of Kandinsky 5.0 Image."""

    max_tokens: int | None = setting(
        None, "Length to which captions are cut; empty: 512, for edits 1024 with the picture's tokens", ge=16, le=1024
    )


class AnySize(list):
    """Stands for the pipeline's list of sizes: what is asked for is drawn, not the nearest of seven of 1 MP."""

    def __contains__(self, size: object) -> bool:
        return True


@register
class Kandinsky5Image(Family):
    """Rectified flow. Made for seven sizes of 1 MP (1024x1024; 640x1408, 768x1280, 896x1152 and upright).

    It trains on any multiple of 16, and samples come in the size asked for; diffusers' own pipeline draws the one of
    the seven that is nearest in aspect.
    Edits: the picture to edit is scaled to the size of the result; the text encoder sees it at half its own size.
    """

    name = "kandinsky5_image"
    title = "Kandinsky 5.0 Image"
    pipelines = {"generate": "Kandinsky5T2IPipeline", "edit": "Kandinsky5I2IPipeline"}
    accepts = ("Kandinsky5T2IPipeline", "Kandinsky5I2IPipeline")
    text_parts = _kandinsky5.TEXT_PARTS
    sources = {
        "lite-sft": "kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers",
        "lite-pretrain": "kandinskylab/Kandinsky-5.0-T2I-Lite-pretrain-Diffusers",
        "edit-lite-sft": "kandinskylab/Kandinsky-5.0-I2I-Lite-sft-Diffusers",
        "edit-lite-pretrain": "kandinskylab/Kandinsky-5.0-I2I-Lite-pretrain-Diffusers",
    }
    resolution = 1024
    guidance = 3.5
    timesteps = LogitNormal()
    blocks = _kandinsky5.BLOCKS
    targets = _kandinsky5.TARGETS
    names = _kandinsky5.NAMES
    licence = "MIT"
    size = "6.0B"
    encoders = "Qwen2.5-VL-7B, CLIP-L"
    Options = Kandinsky5ImageOptions

    def __init__(self, options: Options | None = None, task: str = "generate") -> None:
        super().__init__(options, task)
        self.max_tokens: int = self.options.max_tokens or (1024 if task == "edit" else 512)
        if task == "edit":
            self.reads = frozenset({"references"})

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses models of the other task."""
        super().accept(source)
        _qwen_vl.refuse_other_task(source, self.task, BY_TASK)

    def pipe(self, parts: Parts) -> Any:
        """See `Family.pipe`; it draws any size."""
        pipe = super().pipe(parts)
        pipe.resolutions = AnySize(pipe.resolutions)
        return pipe

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`."""
        rate = halvings(source)
        return Geometry(multiple=rate * source.config("transformer").get("patch_size", (1, 2, 2))[-1], rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; of edits, after the tokens of a picture of 1 MP. CLIP's limit is left out, since
        only its summary is used."""
        processor = tokenizers["tokenizer"]
        room = self.max_tokens
        if self.task == "edit":
            cell = processor.image_processor.patch_size * processor.image_processor.merge_size
            room -= 1024 * 1024 // 4 // cell**2
        return [("tokenizer", _kandinsky5.tokens(processor, self.pipeline, caption), room)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """See `_kandinsky5.encode`."""
        if self.task != "edit":
            return _kandinsky5.encode(self.pipe(parts), [p.text for p in prompts], self.max_tokens)
        conds: list[Cond] = []
        for prompt in prompts:
            image = _qwen_vl.seen(prompt, 1)[0]
            try:
                conds += _kandinsky5.encode(self.pipe(parts), [prompt.text], self.max_tokens, image=image)
            except ValueError as error:  # the processor's word for pictures that were cut
                raise UserError(
                    f"a picture to edit of {image.width}x{image.height} does not fit into {self.max_tokens} tokens "
                    "beside its caption; take smaller pictures (1 MP), or raise options.max_tokens."
                ) from error
        return conds

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.max_tokens}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """See `Family.encode_media`; this model does not use the autoencoder's shift."""
        assert media.pixels is not None
        vae = parts["vae"]
        return vae.encode(media.pixels.to(vae.dtype)).latent_dist.mode() * vae.config.scaling_factor

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """reference: latents [C, h, w] of the picture to edit: the posterior's mean, from which the pipeline draws."""
        if self.task != "edit":
            return super().media_cond(parts, media)
        assert media.pixels is not None
        _qwen_vl.count(len(media.references), 1)
        height, width = media.pixels.shape[-2:]
        rate = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
        given = Media(_qwen_vl.resized(media.references[0], width, height, rate))
        return _qwen_vl.per_item({"reference": self.encode_media(parts, given)}, media)

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """See `Family.collate`: captions are as long as the longest of them."""
        return _qwen_vl.alike(_kandinsky5.shortened(conds))

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`; the same for all sizes."""
        return _flow.shift({**scheduler, "use_dynamic_shifting": False}, 0)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        given = [x]
        if self.task == "edit":
            given += [cond["reference"].to(x.dtype), torch.ones_like(x[:, :1])]
        seen = torch.cat(given, 1)[:, :, None]
        return _kandinsky5.ask(denoiser, seen, t, cond, [1.0, 1.0, 1.0])[:, :, 0]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""
        arguments = {**_kandinsky5.told(request.cond), "guidance_scale": max(request.guidance, 1.0)}
        if request.negative is not None:
            arguments |= _kandinsky5.told(request.negative, "negative_")
        if self.task == "edit":
            _qwen_vl.count(len(request.references), 1)
            arguments["image"] = request.references[0]
        return arguments

    def drawn(self, out: Any, request: Request) -> Drawn:
        """See `Family.drawn`."""
        return Drawn(image=out.image[0])
