"""Stable Cascade, stage C: a network over the 16 channels of an EfficientNet's features, 42 times smaller than pixels.

A picture is made in three stages: C draws these features from text, B and A make pixels of them. Stage C is what is
trained here; it is published apart from the others (`stable-cascade-prior` and `stable-cascade`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import efficientnet_v2_s

from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..libraries import diffusers
from ..native import Names, renamed
from ..objective import Cosine, Objective
from ..recipe import Recipe, Uniform, setting
from ..source import Source, contents
from ..types import Cond, Media, Parts, Prompt
from . import _ddpm

ENCODER = "effnet_encoder"
SECOND = {"decoder": "decoder", "vqgan": "vqgan", "decoder_scheduler": "scheduler"}
"""Our names of the parts of stages B and A → their names in their own model folder."""
PER_CELL = 42.67
"""Pixels of the finished picture per cell of stage C, where the model index does not say."""
MISSING = (
    "source is a folder with stage C of Stable Cascade, but options.decoder is not set, and samples need stages B and "
    "A; set options.decoder to their folder, or to stabilityai/stable-cascade to fetch them, or remove `validate`."
)

ATTENTION = r".*\.attention\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r".*\.channelwise\.(0|4)"
# clip_img_mapper is left out: training and sampling without a picture as prompt give it zeros
TOLD = r".*\.(kv_mapper\.1|mapper|mapper_sca|mapper_crp)|clip_txt_(pooled_)?mapper"


ATTENTION_NAMES = {
    "attn.to_q": "to_q",
    "attn.to_k": "to_k",
    "attn.to_v": "to_v",
    "attn.out_proj": "to_out.0",
}
# As ComfyUI splits it: the original's `attn.in_proj_weight`, one tensor of q, k and v, is no module.
NAMES = Names(
    native=tuple(
        row
        for run in ("down_blocks.{}.{}.attention.", "up_blocks.{}.{}.attention.")
        for row in renamed(run, run, ATTENTION_NAMES)
    ),
    kohya="native",
    architecture="stable-cascade-v1-prior",
    version="stable_cascade",
)


class StableCascadeOptions(Options):
    """Settings of Stable Cascade."""

    decoder: str = setting(
        "stabilityai/stable-cascade",
        "Model folder or Hub id with stages B and A, which samples are finished with, and effnet_encoder.safetensors, "
        "which encodes pictures",
        "advanced",
    )


@register
class StableCascade(Family):
    """Noise prediction in continuous time on a cosine schedule.

    A local `source` is laid out as the Hub's stable-cascade-prior. `effnet_encoder.safetensors` stands at the top of
    the folder that `options.decoder` names, as on the Hub, or at the top of `source`.
    """

    name = "stable_cascade"
    title = "Stable Cascade (stage C)"
    pipelines = {"generate": "StableCascadePriorPipeline"}
    accepts = ("StableCascadePriorPipeline",)
    denoiser = "prior"
    text_parts = ("tokenizer", "text_encoder")
    media_parts = (ENCODER,)
    sources = {"stage-c": "stabilityai/stable-cascade-prior"}
    resolution = 1024
    guidance = 4.0
    timesteps = Uniform()
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{TOLD}",
    }
    names = NAMES
    quantised = f"{ATTENTION}|{FEED_FORWARD}"
    licence = "Stability AI Non-Commercial Research Community"
    size = "3.6B"
    predicts = "epsilon"
    encoders = "CLIP-G"
    Options = StableCascadeOptions

    def accept(self, source: Source) -> None:
        """See `Family.accept`; tells the halves of the model apart."""
        if source.pipeline in ("StableCascadeDecoderPipeline", "StableCascadeCombinedPipeline"):
            raise UserError(
                f"source {source.name} holds stages B and A of Stable Cascade; what is trained is stage C: set source "
                f"to stable-cascade-prior (known as stage-c) and options.decoder to {source.name}."
            )
        super().accept(source)

    def refuses(self, recipe: Recipe) -> str | None:
        """See `Family.refuses`; a run from a local folder does not fetch the second half unless it is told to."""
        drawn = recipe.validation is not None and recipe.validation.prompts
        here = Path(recipe.source).expanduser().is_dir()
        return MISSING if drawn and here and "decoder" not in self.options.model_fields_set else None

    # -- the second half ---------------------------------------------------------------------------------------------

    def second(self) -> Source:
        """The model folder with stages B and A."""
        try:
            return Source(self.options.decoder, {})
        except UserError as error:
            raise UserError(f"options.decoder (stages B and A of Stable Cascade): {error}") from None

    def holder(self, source: Source) -> Source:
        """The model folder that has the encoder."""
        for folder in (source, second := self.second()):
            if folder.file(f"{ENCODER}.safetensors"):
                return folder
        raise UserError(
            f"Neither source {source.name} nor options.decoder {second.name} has {ENCODER}.safetensors, which encodes "
            "pictures for Stable Cascade; download it from stabilityai/stable-cascade into one of them."
        )

    def fingerprint(self, source: Source) -> str:
        """See `Family.fingerprint`; which of the two folders has the encoder is of no consequence."""
        per = source.index.get("resolution_multiple", PER_CELL)
        return f"{contents(self.holder(source).folder, ENCODER)} {per}"

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """See `Family.load`; the encoder is small and stays in float32, since its errors would be trained."""
        loaded = super().load(source, [p for p in parts if p != ENCODER and p not in SECOND], dtype)
        if ENCODER in parts:
            loaded.components[ENCODER] = load_encoder(
                self.holder(source), source.config("prior").get("in_channels", 16)
            )
        if wanted := [p for p in parts if p in SECOND]:
            second = self.second()
            loaded.components |= {p: second.load(SECOND[p], dtype) for p in wanted}
            loaded.components |= {k: v for k, v in second.flags.items() if k == "latent_dim_scale"}
        return loaded

    def sample_parts(self, source: Source) -> tuple[str, ...]:
        """See `Family.sample_parts`."""
        return ("scheduler", *SECOND)

    def first(self, parts: Parts) -> Any:
        """The official pipeline of stage C."""
        prior = self.assemble(diffusers.StableCascadePriorPipeline, parts)
        if prior.text_encoder is None and prior.prior is not None:
            # it asks the absent encoder for its dtype, also where the text is given as embeddings
            prior.text_encoder = SimpleNamespace(dtype=parts.network.dtype)
        return prior

    def pipe(self, parts: Parts) -> Any:
        """The official pipeline of stage C, followed by that of stages B and A where those are loaded."""
        prior = self.first(parts)
        if "decoder" not in parts.components:
            return prior
        components = {"decoder": parts["decoder"], "vqgan": parts["vqgan"], "scheduler": parts["decoder_scheduler"]}
        components |= {k: v for k, v in parts.components.items() if k == "latent_dim_scale"}
        return Cascade(prior, self.assemble(diffusers.StableCascadeDecoderPipeline, Parts("decoder", components)))

    # -- what differs --------------------------------------------------------------------------------------------------

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        config = source.config("scheduler")
        if config.get("_class_name") != "DDPMWuerstchenScheduler":
            raise UserError(
                f"source {source.name} has the scheduler {config.get('_class_name', 'none')}, but Stable Cascade is "
                "trained on the schedule of DDPMWuerstchenScheduler; take another source."
            )
        return Cosine(config.get("scaler", 1.0), config.get("s", 0.008), snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """The smallest size that is a whole number of cells: 128 pixels for 3 cells of 42.67.

        More where the network halves between its levels or packs cells into patches, which the published one does not.
        """
        config, per = source.config("prior"), source.index.get("resolution_multiple", PER_CELL)
        halved = config.get("switch_level")
        count = len(config.get("block_out_channels", (0, 0))) - 1 if halved is None else sum(map(bool, halved))
        step = config.get("patch_size", 1) * 2**count
        for cells in range(step, 64 * step, step):
            multiple = round(cells * per)
            if abs(cells * per - multiple) <= 0.005 * cells and math.ceil(16 * multiple / per) == 16 * cells:
                return Geometry(multiple=multiple, rate=round(per))
        raise UserError(
            f"source {source.name} has a resolution_multiple of {per} in its model_index.json, of which no few cells "
            f"make whole pixels; published is {PER_CELL}."
        )

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`."""
        return _ddpm.clip_tokens(tokenizers, caption)

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [77, D], pooled: [1, P] per caption."""
        texts, device = [p.text for p in prompts], parts["text_encoder"].device
        embeds, pooled, *_ = self.first(parts).encode_prompt(device, len(texts), 1, False, prompt=texts)
        return [{"embeds": e, "pooled": p} for e, p in zip(embeds, pooled, strict=True)]

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """See `Family.encode_media`; the encoder sees 32 pixels per cell, so that pictures are made smaller for it."""
        assert media.pixels is not None
        per = parts.components.get("resolution_multiple", PER_CELL)
        size = [32 * math.ceil(edge / per) for edge in media.pixels.shape[-2:]]
        pixels = media.pixels.float()
        if list(pixels.shape[-2:]) != size:
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(-1, 1)
        return parts[ENCODER](pixels)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; the picture as prompt, which stage C also knows, is absent (zeros)."""
        config: Any = getattr(denoiser, "module", denoiser).config  # a distributed wrapper hides it
        return denoiser(
            sample=x,
            timestep_ratio=t,
            clip_text_pooled=cond["pooled"],
            clip_text=cond["embeds"],
            clip_img=x.new_zeros(len(x), 1, config.clip_image_in_channels),
            return_dict=False,
        )[0]

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`."""
        names = {"embeds": "prompt_embeds", "pooled": "prompt_embeds_pooled"}
        text = {name: request.cond[key][None] for key, name in names.items()}
        if request.negative is not None:
            text |= {f"negative_{name}": request.negative[key][None] for key, name in names.items()}
        return {**text, "guidance_scale": request.guidance}


class Cascade:
    """The official pipelines of the two halves, one after the other; the second at its own number of steps."""

    def __init__(self, prior: Any, decoder: Any) -> None:
        self.prior, self.decoder = prior, decoder

    def __call__(self, *, generator: Any, output_type: str, **asked: Any) -> Any:
        """asked: arguments of the first pipeline. Returns what the second returns."""
        features = self.prior(**asked, generator=generator).image_embeddings
        text = {k: asked[k] for k in ("prompt_embeds", "prompt_embeds_pooled")}
        features = features.to(self.decoder.decoder.dtype)
        return self.decoder(features, **text, generator=generator, output_type=output_type)


class Encoder(nn.Module):
    """EfficientNet-V2-S and a projection of its features, normalised per channel; names as in the published file."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.backbone = efficientnet_v2_s(weights=None).features
        self.mapper = nn.Sequential(
            nn.Conv2d(1280, channels, kernel_size=1, bias=False), nn.BatchNorm2d(channels, affine=False)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, 32 h, 32 w] in -1..1 → [B, channels, h, w]; the backbone wants ImageNet's mean and deviation."""
        mean = pixels.new_tensor((0.485, 0.456, 0.406)).reshape(3, 1, 1)
        deviation = pixels.new_tensor((0.229, 0.224, 0.225)).reshape(3, 1, 1)
        return self.mapper(self.backbone(((pixels + 1) / 2 - mean) / deviation))


def load_encoder(source: Source, channels: int) -> Encoder:
    """The encoder of a model folder, frozen. Raises `UserError` when its file does not fit."""
    path = source.file(f"{ENCODER}.safetensors")
    assert path is not None
    encoder = Encoder(channels)
    try:
        encoder.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{path} is not Stable Cascade's encoder ({first}); download it again.") from error
    return encoder.float().requires_grad_(False).eval()
