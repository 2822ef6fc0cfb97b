"""LongCat-Image: a two-stream, then one-stream transformer over packed 2x2 patches, told the text by Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import LongCatImagePipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.longcat_image import pipeline_longcat_image_edit
from diffusers.pipelines.longcat_image.pipeline_longcat_image import prepare_pos_ids, split_quotation
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..family import Family, Geometry, Options, Request, register
from ..native import Names
from ..objective import Objective
from ..recipe import LogitNormal
from ..source import Source
from ..types import Cond, Media, Parts, Prompt
from . import _flow, _flux, _qwen_vl
from ._latents import halvings

ATTENTION = r".*\.attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
# One-stream blocks have their feed-forward in proj_mlp and proj_out; the network's last layer, also proj_out, is left.
FEED_FORWARD = r".*\.ff(_context)?\.net\.(0\.proj|2)|single_transformer_blocks\.\d+\.proj_(mlp|out)"
MODULATION = r"transformer_blocks\.\d+\.norm1(_context)?\.linear|single_transformer_blocks\.\d+\.norm\.linear"
ROTARY = (Aligned("image_rotary_emb", dims=(0,)),)
BY_TASK = {"generate": ("LongCatImagePipeline",), "edit": ("LongCatImageEditPipeline",)}
TOKENS = 512
"""Length to which captions are cut and padded; the network reads the padding."""


# No kohya-like tool knows it; ComfyUI builds it from FLUX.1's parts.
NAMES = Names(
    native=(
        *_flux.BLOCKS,
        *_flux.MODULATION,
        *_flux.ENDS,
        _flux.LAST,
        *_flux.embedder("time_in", "time_embed.timestep_embedder"),
    ),
    architecture="LongCat-Image",
    version="longcat_image",
)


@register
class LongCatImage(Family):
    """Rectified flow; t moves towards noise with the size of the picture. Prompts are never rewritten.

    Captions are tokenised letter by letter between quotation marks, which is how the model learns to write.
    Edits: the picture to edit is scaled to the size of the result, since the pipeline always draws in the size of what
    it is given (1 MP in its aspect, whatever `validate.size` says); the text encoder sees it at half of that size.
    """

    name = "longcat_image"
    title = "LongCat-Image"
    pipelines = {"generate": "LongCatImagePipeline", "edit": "LongCatImageEditPipeline"}
    accepts = ("LongCatImagePipeline", "LongCatImageEditPipeline")
    sources = {
        "image": "meituan-longcat/LongCat-Image",
        "dev": "meituan-longcat/LongCat-Image-Dev",
        "edit": "meituan-longcat/LongCat-Image-Edit",
    }
    resolution = 1024
    guidance = 4.5
    timesteps = LogitNormal()
    blocks = (
        Blocks("transformer_blocks", output=1, aligned=ROTARY),
        Blocks("single_transformer_blocks", output=1, aligned=ROTARY),
    )
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{MODULATION}",
    }
    names = NAMES
    licence = "Apache-2.0"
    size = "6.3B"
    encoders = "Qwen2.5-VL-7B"

    def __init__(self, options: Options | None = None, task: str = "generate") -> None:
        super().__init__(options, task)
        self.text_parts = ("tokenizer", "text_encoder")
        if task == "edit":
            self.text_parts += ("text_processor",)
            self.further_parts = ("text_processor",)  # the edit pipeline cannot be put together without
            self.reads = frozenset({"references"})

    def accept(self, source: Source) -> None:
        """See `Family.accept`; also refuses models of the other task."""
        super().accept(source)
        _qwen_vl.refuse_other_task(source, self.task, BY_TASK)

    def pipe(self, parts: Parts) -> Any:
        """See `Family.pipe`; also lets it draw from cached text, where it asks how many prompts None are."""
        pipe = super().pipe(parts)
        pipe.tokenizer_max_length = TOKENS
        encode = pipe.encode_prompt
        pipe.encode_prompt = lambda prompt=None, **given: encode(prompt=[""] if prompt is None else prompt, **given)
        return pipe

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return _flow.objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; latents are packed in 2x2 patches."""
        rate = halvings(source)
        return Geometry(multiple=2 * rate, rate=rate)

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`."""
        return [("tokenizer", _count(tokenizers["tokenizer"], caption), TOKENS)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [512, D] per caption; of edits after the tokens of the picture."""
        pipe = self.pipe(parts)
        if self.task == "edit":
            return [{"embeds": self._edit_embeds(pipe, prompt)} for prompt in prompts]
        return [{"embeds": e} for e in pipe.encode_prompt([p.text for p in prompts])[0]]

    def _edit_embeds(self, pipe: Any, prompt: Prompt) -> Tensor:
        """[tokens, D]: what the pipeline makes of a caption and its picture."""
        image, resize = _qwen_vl.seen(prompt, 1)[0], VaeImageProcessor().resize
        width, height = pipeline_longcat_image_edit.calculate_dimensions(1024 * 1024, image.width * 1.0 / image.height)
        half = resize(resize(image, height, width), height // 2, width // 2)
        return pipe.encode_prompt([_fitting(pipe.tokenizer, prompt.text)], image=half)[0][0]

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """reference: latents [C, h, w] of the picture to edit, as large as those of the result."""
        if self.task != "edit":
            return super().media_cond(parts, media)
        assert media.pixels is not None
        _qwen_vl.count(len(media.references), 1)
        height, width = media.pixels.shape[-2:]
        multiple = 2 ** len(parts["vae"].config.block_out_channels)
        given = _qwen_vl.resized(media.references[0], width, height, multiple)
        return _qwen_vl.per_item({"reference": self.encode_media(parts, Media(given))}, media)

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """See `Family.collate`; pictures to edit of different aspect give texts of different length."""
        return _qwen_vl.alike(conds)

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`; the picture to edit does not count."""
        return _flow.shift(scheduler, (latents.shape[-2] // 2) * (latents.shape[-1] // 2))

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the network's answer is already noise - data."""
        h, w = x.shape[-2:]
        embeds, reference = cond["embeds"], cond.get("reference")
        length = embeds.shape[1]
        place = {"type": "image", "start": (length, length), "height": h // 2, "width": w // 2}
        planes, places = [x], [prepare_pos_ids(modality_id=1, **place).to(x.device)]
        if reference is not None:
            planes.append(reference.to(x.dtype))
            # in double precision, as in the pipeline; MPS has none, and whole numbers need none
            exact = torch.float32 if x.device.type == "mps" else torch.float64
            places.append(prepare_pos_ids(modality_id=2, **place).to(x.device, exact))
        out = denoiser(
            hidden_states=torch.cat([LongCatImagePipeline._pack_latents(p, *p.shape) for p in planes], 1),
            timestep=t,
            guidance=None,
            encoder_hidden_states=embeds,
            txt_ids=prepare_pos_ids(modality_id=0, type="text", start=(0, 0), num_token=length).to(x.device),
            img_ids=torch.cat(places),
            return_dict=False,
        )[0][:, : h * w // 4]
        return LongCatImagePipeline._unpack_latents(out, h, w, 1)

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""
        arguments = {"prompt_embeds": request.cond["embeds"][None], "guidance_scale": max(request.guidance, 1.0)}
        if request.negative is not None:
            arguments["negative_prompt_embeds"] = request.negative["embeds"][None]
        if self.task == "edit":
            _qwen_vl.count(len(request.references), 1)
            return {**arguments, "image": request.references[0]}
        return {**arguments, "enable_prompt_rewrite": False}

    def sized(self, request: Request) -> dict[str, Any]:
        """See `Family.sized`; edits have the size of what they start from."""
        size = {"width", "height"} if self.task == "edit" else set()
        return {k: v for k, v in super().sized(request).items() if k not in size}


def _count(tokenizer: Any, caption: str) -> int:
    """Tokens of a caption: letter by letter between quotation marks."""
    pieces = [p for part, quoted in split_quotation(caption) for p in (part if quoted else [part])]
    return sum(len(tokenizer(p, add_special_tokens=False).input_ids) for p in pieces)


def _fitting(tokenizer: Any, caption: str) -> str:
    """The longest beginning of a caption that has no more than 512 tokens: the edit pipeline fails on longer ones."""
    if _count(tokenizer, caption) <= TOKENS:
        return caption
    low, high = 0, len(caption)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _count(tokenizer, caption[:middle]) <= TOKENS else (low, middle)
    return caption[:low]
