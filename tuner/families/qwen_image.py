"""Qwen-Image: a two-stream transformer over packed 2x2 patches, told the text (and pictures to edit) by Qwen2.5-VL."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..libraries import diffusers
from ..native import Names
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from . import _flow, _qwen_vl

ATTENTION = r".*\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
FEED_FORWARD = r".*\.(img|txt)_mlp\.net\.(0\.proj|2)"
MODULATION = r".*\.(img|txt)_mod\.1"
PICTURE = "reference_"
EDIT, EDIT_PLUS = "QwenImageEditPipeline", "QwenImageEditPlusPipeline"
BY_TASK = {"generate": ("QwenImagePipeline",), "edit": (EDIT, EDIT_PLUS)}


# The original has diffusers' names.
NAMES = Names(
    kohya="native",
    architecture="Qwen-Image",
    aliases=("Qwen-Image-Edit", "Qwen-Image-Edit-Plus", "Qwen-Image-Edit-2511"),
    version="qwen_image",
)


class QwenImageOptions(Options):
    """Settings of Qwen-Image."""

    max_tokens: int = setting(
        512,
        "Task generate: length to which captions are cut, with the template's end (edits are not cut)",
        ge=1,
        le=1024,
    )


@register
class QwenImage(Family):
    """Rectified flow; t moves towards noise with the size of the picture.

    Edits: reference pictures are scaled to an area of 1 MP (for the text encoder of the models for several pictures to
    384²), as their pipelines do whatever the size of the result; the network sees them as further clean tokens.
    """

    name = "qwen_image"
    title = "Qwen-Image"
    pipelines = {"generate": "QwenImagePipeline", "edit": EDIT_PLUS}
    accepts = ("QwenImagePipeline", EDIT, EDIT_PLUS)
    sources = {
        "2512": "Qwen/Qwen-Image-2512",
        "1.0": "Qwen/Qwen-Image",
        "edit": "Qwen/Qwen-Image-Edit",
        "edit-2509": "Qwen/Qwen-Image-Edit-2509",
        "edit-2511": "Qwen/Qwen-Image-Edit-2511",
    }
    resolution = 1328
    guidance = 4.0
    timesteps = LogitNormal()
    blocks = (
        Blocks(
            "transformer_blocks",
            output=1,
            aligned=(Aligned("image_rotary_emb", dims=(0,), entry=0), Aligned("modulate_index")),
        ),
    )
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    names = NAMES
    licence = "Apache-2.0"
    size = "20.4B"
    encoders = "Qwen2.5-VL-7B"
    Options = QwenImageOptions

    def __init__(self, options: Options | None = None, task: str = "generate") -> None:
        super().__init__(options, task)
        self.text_parts = ("tokenizer", "text_encoder")
        if task == "edit":
            self.text_parts += ("processor",)
            self.reads = frozenset({"references"})
            if "max_tokens" in self.options.model_fields_set:
                raise UserError("options.max_tokens has no effect on edits, whose captions are never cut; remove it.")

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses models of the other task, and a guidance embedding."""
        super().accept(source)
        _qwen_vl.refuse_other_task(source, self.task, BY_TASK)
        if source.config("transformer").get("guidance_embeds"):
            raise UserError(
                f"source {source.name} is a distilled model with a guidance embedding, which the installed diffusers "
                "cannot run; choose another source."
            )

    def pipe(self, parts: Parts) -> Any:
        """See `Family.pipe`; edits have two pipelines, and the model says which is its own."""
        return self.assemble(getattr(diffusers, parts.pipeline), parts)

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; latents are packed in 2x2 patches."""
        rate = 2 ** len(source.config("vae").get("temperal_downsample", (False, True, True)))
        return Geometry(multiple=2 * rate, rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; the template's end counts, its cut beginning does not."""
        if self.task == "edit":
            return []
        template, start = _template()
        tokens = len(tokenizers["tokenizer"](template.format(caption)).input_ids)
        return [("tokenizer", tokens - start, self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [tokens, D] per caption, after the template's beginning; of edits with the pictures' tokens."""
        pipe, device = self.pipe(parts), parts["text_encoder"].device
        if self.task == "edit":
            return [{"embeds": self._edit_embeds(pipe, prompt, device)} for prompt in prompts]
        texts = [p.text for p in prompts]
        embeds, mask = pipe.encode_prompt(texts, device=device, max_sequence_length=self.options.max_tokens)
        lengths = [embeds.shape[1]] * len(texts) if mask is None else mask.sum(1).tolist()
        return [{"embeds": e[:n]} for e, n in zip(embeds, lengths, strict=True)]

    def _edit_embeds(self, pipe: Any, prompt: Prompt, device: torch.device) -> Tensor:
        """[tokens, D]: what the pipeline of the model makes of a caption and its pictures."""
        several = type(pipe).__name__ == EDIT_PLUS
        images = [
            pipe.image_processor.resize(image, *reversed(_area(image.size, several, for_text=True)))
            for image in _qwen_vl.seen(prompt, None if several else 1)
        ]
        return pipe.encode_prompt([prompt.text], image=images if several else images[0], device=device)[0][0]

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {} if self.task == "edit" else {"max_tokens": self.options.max_tokens}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """See `Family.encode_media`: [B, C, h, w], each channel with its own mean and deviation."""
        assert media.pixels is not None
        return self._encode(parts["vae"], media.pixels)

    def _encode(self, vae: Any, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, C, h, w]; the autoencoder is one of clips, and takes a picture as a clip of one frame."""
        z = vae.encode(pixels[:, :, None].to(vae.device, vae.dtype)).latent_dist.mode()[:, :, 0]
        mean, std = (torch.tensor(v, device=z.device, dtype=z.dtype) for v in _statistics(vae))
        return (z - mean[:, None, None]) / std[:, None, None]

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """reference_0, reference_1, ...: latents [C, h, w] of the pictures to edit from."""
        if self.task != "edit":
            return super().media_cond(parts, media)
        several, vae = parts.pipeline == EDIT_PLUS, parts["vae"]
        _qwen_vl.count(len(media.references), None if several else 1)
        named = {}
        for i, reference in enumerate(media.references):
            width, height = _area((reference.shape[-1], reference.shape[-2]), several)
            multiple = 2 * 2 ** len(vae.temperal_downsample)
            named[f"{PICTURE}{i}"] = self._encode(vae, _qwen_vl.resized(reference, width, height, multiple))
        return _qwen_vl.per_item(named, media)

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """See `Family.collate`: captions padded to the longest, with a mask where any is shorter."""
        embeds, mask = _qwen_vl.padded([c["embeds"] for c in conds])
        others = _qwen_vl.alike([{k: v for k, v in c.items() if k != "embeds"} for c in conds])
        return {"embeds": embeds, "mask": mask, **others}

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`; reference pictures do not count."""
        return _flow.shift(scheduler, (latents.shape[-2] // 2) * (latents.shape[-1] // 2))

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        h, w = x.shape[-2:]
        count = sum(key.startswith(PICTURE) for key in cond)
        planes = [x, *(cond[f"{PICTURE}{i}"].to(x.dtype) for i in range(count))]
        out = denoiser(
            hidden_states=torch.cat([QwenImagePipeline._pack_latents(p, *p.shape) for p in planes], 1),
            timestep=t,
            guidance=None,
            encoder_hidden_states_mask=cond["mask"],
            encoder_hidden_states=cond["embeds"],
            img_shapes=[[(1, p.shape[-2] // 2, p.shape[-1] // 2) for p in planes]] * len(x),
            attention_kwargs={},
            return_dict=False,
        )[0][:, : h * w // 4]
        return QwenImagePipeline._unpack_latents(out, h, w, 1)[:, :, 0]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`: real guidance away from the negative."""
        arguments = _text(request.cond)
        if self.task == "edit":
            _qwen_vl.count(len(request.references), None if parts.pipeline == EDIT_PLUS else 1)
            images = list(request.references)
            arguments["image"] = images if parts.pipeline == EDIT_PLUS else images[0]
        else:
            arguments["max_sequence_length"] = self.options.max_tokens
        if request.negative is None or request.guidance <= 1.0:
            return {**arguments, "true_cfg_scale": 1.0}
        return {**arguments, **_text(request.negative, "negative_"), "true_cfg_scale": request.guidance}


@functools.cache
def _template() -> tuple[str, int]:
    """The pipeline's template, and how many tokens of its beginning are cut off."""
    pipe = QwenImagePipeline(None, None, None, None, None)
    return pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx


def _text(cond: Cond, prefix: str = "") -> dict[str, Any]:
    """A caption's embeddings as the pipelines take them."""
    embeds = cond["embeds"][None]
    mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    return {f"{prefix}prompt_embeds": embeds, f"{prefix}prompt_embeds_mask": mask}


def _area(size: tuple[int, int], several: bool, for_text: bool = False) -> tuple[int, int]:
    """Width and height to which the pipeline scales a reference picture of `size`, by its own rule."""
    if not several:
        return pipeline_qwenimage_edit.calculate_dimensions(1024 * 1024, size[0] / size[1])[:2]
    plus = pipeline_qwenimage_edit_plus
    area = plus.CONDITION_IMAGE_SIZE if for_text else plus.VAE_IMAGE_SIZE
    return plus.calculate_dimensions(area, size[0] / size[1])


def _statistics(vae: Any) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each latent channel."""
    return vae.config.latents_mean, vae.config.latents_std
