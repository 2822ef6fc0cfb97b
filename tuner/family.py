"""What the trainer needs to know of a model family, and nothing more."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .blocks import Blocks
from .errors import UserError
from .libraries import diffusers
from .objective import Objective
from .recipe import Model, TimestepSpec
from .source import Source
from .types import Cond, Parts


class Options(Model):
    """Settings that only one family has; subclass per family."""


@dataclass(frozen=True)
class Geometry:
    """How pictures become latents. multiple: what width and height must divide by. rate: pixels per latent cell."""

    multiple: int
    rate: int


@dataclass(frozen=True)
class Framing:
    """How one picture was cut: original size, size after scaling, left top corner of the crop, size of the crop."""

    original: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class Request:
    """One sample to draw. cond and negative: one item each, unbatched (negative only where guidance wants it)."""

    cond: Cond
    negative: Cond | None
    width: int
    height: int
    steps: int
    guidance: float
    seed: int


class Family:
    """One model family. Holds its options and no other state. Subclass once; a family never subclasses a family."""

    name: ClassVar[str]
    title: ClassVar[str]
    modality: ClassVar[Literal["image", "video", "audio"]] = "image"
    tasks: ClassVar[tuple[str, ...]] = ("generate",)
    pipeline: ClassVar[str]
    """The diffusers pipeline that samples and encodes text."""
    accepts: ClassVar[tuple[str, ...]]
    """Pipeline class names in `model_index.json` that are this family's."""
    denoiser: ClassVar[Literal["transformer", "unet", "prior"]] = "transformer"
    text_parts: ClassVar[tuple[str, ...]]
    media_parts: ClassVar[tuple[str, ...]] = ("vae",)
    sources: ClassVar[dict[str, str]]
    resolution: ClassVar[int]
    """Edge length for which the family was made."""
    guidance: ClassVar[float]
    """Usual guidance when sampling."""
    timesteps: ClassVar[TimestepSpec]
    blocks: ClassVar[tuple[Blocks, ...]] = ()
    """Runs of transformer blocks, () when the network has none."""
    targets: ClassVar[dict[str, str]]
    """LoRA presets: name → regular expression over full module names; the first is `default`."""
    licence: ClassVar[str]
    size: ClassVar[str]
    """Published number of parameters of the denoiser, for the table."""
    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options | None = None) -> None:
        self.options: Any = options or self.Options()

    # -- loading ---------------------------------------------------------------------------------------------------

    def accept(self, source: Source) -> None:
        """Raise `UserError` if the model folder belongs to another family."""
        if source.pipeline not in self.accepts:
            raise UserError(
                f"source {source.name} is a {source.pipeline or 'nameless'} model, but family {self.name} needs one of "
                f"{', '.join(self.accepts)}; change `family` or `source`."
            )

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """Load the named components (those the model has), in `dtype`, frozen."""
        wanted = [p for p in parts if source.has(p) or p in (self.denoiser, *self.media_parts)]
        return Parts(self.denoiser, {**source.flags, **{p: source.load(p, dtype) for p in wanted}})

    def pipe(self, parts: Parts) -> Any:
        """The official pipeline around the loaded components; the others are None."""
        cls = getattr(diffusers, self.pipeline)
        names = set(inspect.signature(cls.__init__).parameters) - {"self"}
        components = {k: v for k, v in parts.components.items() if k in names}
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if name != "self" and name not in components and parameter.default is inspect.Parameter.empty:
                components[name] = None
        pipe = cls(**components)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    # -- what differs --------------------------------------------------------------------------------------------------

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """What this model was trained to answer, read from its scheduler where that varies."""
        raise NotImplementedError

    def geometry(self, source: Source) -> Geometry:
        """Read from the model's own configuration: small models differ."""
        raise NotImplementedError

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """(tokenizer, tokens the caption has, tokens it takes) for every tokenizer whose limit matters."""
        raise NotImplementedError

    def encode_text(self, parts: Parts, captions: Sequence[str]) -> list[Cond]:
        """One dict of tensors per caption, without a batch axis: what the cache holds."""
        raise NotImplementedError

    def encode_settings(self) -> dict[str, Any]:
        """Options that change what `encode_text` returns; part of the cache key."""
        return {}

    def encode_media(self, parts: Parts, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] in -1..1 → normalised latents [B, C, h, w]: the mean of the posterior, scaled."""
        vae = parts["vae"]
        z = vae.encode(pixels.to(vae.dtype)).latent_dist.mode()
        return (z - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor

    def frame_cond(self, framing: Framing) -> Cond:
        """What the denoiser is told about how a picture was cut (SDXL's sizes); {} for most."""
        return {}

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """Items → batch; default: stack (all captions have one length)."""
        return {k: torch.stack([c[k] for c in conds]) for k in conds[0]}

    def shift(self, latents: Tensor, scheduler: dict[str, Any]) -> float:
        """How far the family's own pipeline moves t towards noise for latents of this size; 1 = not at all."""
        return 1.0

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's answer in our terms, called exactly as the pipeline calls it.

        x: [B, C, h, w] noisy latents. t: [B] in [0, 1]. Returns [B, C, h, w], comparable to the objective's target.
        """
        raise NotImplementedError

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """Arguments of the official pipeline for one sample from cached text."""
        raise NotImplementedError

    def wants_negative(self, source: Source, guidance: float) -> bool:
        """Whether sampling with this guidance needs the negative prompt's embedding."""
        return guidance > 1.0


FAMILIES: dict[str, type[Family]] = {}


def register(cls: type[Family]) -> type[Family]:
    """Class decorator: make a family known by its name."""
    if cls.name in FAMILIES:
        raise AssertionError(f"family {cls.name!r} is registered twice")
    FAMILIES[cls.name] = cls
    return cls
