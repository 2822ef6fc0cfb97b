"""What the trainer needs to know of a model family, and nothing more."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from .blocks import Blocks
from .errors import UserError
from .libraries import diffusers
from .native import Names
from .objective import Objective
from .recipe import Model, Recipe, TimestepSpec
from .source import Source
from .types import Cond, Drawn, Media, Parts, Prompt

ENCODER = "text_encoder"


class Options(Model):
    """Settings that only one family has; subclass per family."""


@dataclass(frozen=True)
class Geometry:
    """How media become latents; a family fills in what it has.

    multiple: what width and height must divide by. rate: pixels per latent cell (each way).
    frame_step: clips have frame_step * k + 1 frames; 0 where the model knows no clips. fps: frames per second that the
    model was made for. frames: usual number of frames of a clip.
    sample_rate: samples of sound per second, 0 for none. channels: of sound. hop: samples per latent frame; lengths are
    cut to a multiple of it. seconds: usual longest sound.
    """

    multiple: int = 1
    rate: int = 1
    frame_step: int = 0
    fps: float = 0.0
    frames: int = 1
    sample_rate: int = 0
    channels: int = 0
    hop: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class Framing:
    """How one picture was cut: original size, size after scaling, left top corner of the crop, size of the crop."""

    original: tuple[int, int]
    scaled: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class Request:
    """One sample to draw. cond and negative: one item each, unbatched (negative only where guidance wants it).

    frames, fps: of a clip. seconds: of sound. references: PIL pictures of edit and image_to_video tasks.
    """

    cond: Cond
    negative: Cond | None
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    frames: int = 1
    fps: float = 0.0
    seconds: float = 0.0
    references: tuple[Any, ...] = ()


class Family:
    """One model family. Holds its options and task, and no other state. A family never subclasses a family.

    Attributes that depend on options or task (denoiser, text_parts, media_parts) are set anew in `__init__`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    modality: ClassVar[Literal["image", "video", "audio"]] = "image"
    pipelines: ClassVar[dict[str, str]]
    """Task → the diffusers pipeline that samples and encodes text for it."""
    accepts: ClassVar[tuple[str, ...]]
    """Pipeline class names in `model_index.json` that are this family's."""
    denoiser: Literal["transformer", "transformer_2", "unet", "prior"] = "transformer"
    text_parts: tuple[str, ...]
    media_parts: tuple[str, ...] = ("vae",)
    further_parts: tuple[str, ...] = ()
    """What sampling needs beside denoiser, media parts and scheduler (a second expert, a vocoder)."""
    reads: frozenset[str] = frozenset()
    """What the text encoders are told beside the caption: "references", "lyrics", "seconds"."""
    sources: ClassVar[dict[str, str]]
    resolution: ClassVar[int] = 0
    """Edge length for which the family was made; 0 for sound."""
    guidance: ClassVar[float]
    """Usual guidance when sampling."""
    timesteps: ClassVar[TimestepSpec]
    plane: ClassVar[bool] = True
    """Whether the last two axes of latents are rows and columns of the picture, as masks need."""
    blocks: tuple[Blocks, ...] = ()
    """Runs of transformer blocks, () when the network has none."""
    targets: ClassVar[dict[str, str]]
    """LoRA presets: name → regular expression over full module names; the first is `default`."""
    trainable_text: ClassVar[dict[str, int]] = {}
    """Text encoders that may train: component → how many of its last layers give an answer that nobody reads."""
    quantised: ClassVar[str] = ""
    """The linear layers that a quantised base holds in fewer bits, a regular expression over full names; "": all of
    `blocks`."""
    lora_arguments: dict[str, Any] = {}
    """Further arguments of the pipeline's `load_lora_weights`."""
    names: Names = Names()
    """What adapter files of the family are called outside of diffusers; read them by `named`."""
    licence: ClassVar[str]
    size: ClassVar[str]
    """Published number of parameters of the denoiser, for the table."""
    predicts: ClassVar[str] = "flow"
    """What the network answers, for the table: flow, epsilon, velocity."""
    encoders: ClassVar[str]
    """Text encoders by the names people know, for the table."""
    Options: ClassVar[type[Options]] = Options

    def __init__(self, options: Options | None = None, task: str = "generate") -> None:
        self.options: Any = options or self.Options()
        self.task = task

    @property
    def pipeline(self) -> str:
        """The official pipeline of the task."""
        return self.pipelines[self.task]

    # -- loading ---------------------------------------------------------------------------------------------------

    def accept(self, source: Source) -> None:
        """Raise `UserError` if the model folder belongs to another family."""
        if source.pipeline not in self.accepts:
            raise UserError(
                f"source {source.name} is a {source.pipeline or 'nameless'} model, but family {self.name} needs one of "
                f"{', '.join(self.accepts)}; change `family` or `source`."
            )

    def named(self, config: Mapping[str, Any]) -> Names:
        """`names` for a network of this configuration, by which those of UNets differ (blocks are counted through)."""
        return self.names

    def refuses(self, recipe: Recipe) -> str | None:
        """A sentence for the user when this family cannot carry out something else that the recipe asks for."""
        return None

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """Load the named components (those the model has), in `dtype`, frozen."""
        wanted = [p for p in parts if source.has(p) or p in (self.denoiser, *self.media_parts)]
        return Parts(self.denoiser, {**source.flags, **{p: source.load(p, dtype) for p in wanted}}, source.pipeline)

    def fingerprint(self, source: Source) -> str:
        """A hash over the bytes of what encodes media."""
        return source.fingerprint(*self.media_parts)

    def sample_parts(self, source: Source) -> tuple[str, ...]:
        """The components beside the denoiser that sampling from cached text needs, of those that the model has."""
        wanted = dict.fromkeys((*self.media_parts, *self.further_parts, "scheduler"))
        return tuple(p for p in wanted if source.has(p))

    def pipe(self, parts: Parts) -> Any:
        """The official pipeline around the loaded components; the others are None."""
        return self.assemble(getattr(diffusers, self.pipeline), parts)

    def assemble(self, cls: Any, parts: Parts) -> Any:
        """A pipeline of class `cls` around the loaded components."""
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

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """One dict of tensors per prompt, without a batch axis: what the cache holds."""
        raise NotImplementedError

    @property
    def retells_all(self) -> bool:
        """Whether all that the denoiser is told of a caption comes from text encoders that may train."""
        return bool(self.trainable_text) and {p for p in self.text_parts if p.startswith(ENCODER)} == set(
            self.trainable_text
        )

    def retelling_parts(self, source: Source) -> tuple[str, ...]:
        """The components of `text_parts` that `retell` needs: `trainable_text` and their tokenizers."""
        wanted = {*self.trainable_text, *(p.replace(ENCODER, "tokenizer") for p in self.trainable_text)}
        return tuple(p for p in self.text_parts if p in wanted and source.has(p))

    def retell(self, parts: Parts, captions: Sequence[str], cond: Cond) -> Cond:
        """A batch's condition with what `trainable_text` says of its captions now, differentiable; the rest stays.

        cond: collated; its text need not be there where `retells_all`.
        """
        told = self.encode_text(parts, [Prompt(caption) for caption in captions])
        return {**cond, **{k: torch.stack([c[k] for c in told]) for k in told[0]}}

    def encode_settings(self) -> dict[str, Any]:
        """Options that change what `encode_text`, `encode_media` or `media_cond` return; part of the cache key."""
        return {}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """Normalised latents [B, C, ...]: the mean of the autoencoder's posterior, scaled as the pipeline does.

        Pictures give [B, C, h, w]; families of clips [B, C, f, h, w], also for pictures (f = 1); sound [B, C, T].
        """
        assert media.pixels is not None
        vae = parts["vae"]
        z = vae.encode(media.pixels.to(vae.dtype)).latent_dist.mode()
        return (z - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """What the denoiser is told that comes from the media, one dict per item: the latents of reference pictures
        (edit), of the first frame (image_to_video), a picture encoder's features. Cached beside the latents."""
        count = len(media.pixels if media.pixels is not None else media.sound)  # pyrefly: ignore[bad-argument-type]
        return [{} for _ in range(count)]

    def frame_cond(self, framing: Framing) -> Cond:
        """What the denoiser is told about how a picture was cut (SDXL's sizes); {} for most."""
        return {}

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """Items → batch; default: stack (all captions have one length)."""
        return {k: torch.stack([c[k] for c in conds]) for k in conds[0]}

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """How far the family's own pipeline moves t towards noise for latents of this size; 1 = not at all."""
        return 1.0

    def reach(self, source: Source) -> tuple[float, float]:
        """Lowest and highest t (after the shift) that this network is asked at: the part of one expert of several."""
        return 0.0, 1.0

    def emphasis(self, x: Tensor, cond: Cond) -> Tensor | None:
        """Weights of the elementwise error, broadcastable to x, or None: 0 where the answer is not used (a given first
        frame), and what balances two modalities in one tensor."""
        return None

    def ready(self, denoiser: nn.Module) -> None:
        """Put right what the network needs before it is trained (a defect of the library that a pin holds still)."""

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's answer in our terms, called exactly as the pipeline calls it.

        x: [B, C, h, w] noisy latents. t: [B] in [0, 1]. Returns [B, C, h, w], comparable to the objective's target.
        """
        raise NotImplementedError

    def extra(self, denoiser: nn.Module) -> dict[str, Tensor]:
        """Further terms of the loss by name, with gradient, which the last `predict` in training noted in the network
        (how evenly experts are used)."""
        return {}

    def prepare(self, pipe: Any, request: Request) -> None:
        """Bring the official pipeline to draw this request as it is asked for, where arguments cannot."""

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """Arguments of the official pipeline for one sample from cached text; they go over those of `sized`."""
        raise NotImplementedError

    def sized(self, request: Request) -> dict[str, Any]:
        """Size, length and steps as the pipeline calls them."""
        common = {"num_inference_steps": request.steps, "output_type": "pil"}
        if self.modality == "audio":
            return common
        size = {"width": request.width, "height": request.height}
        return {**common, **size, **({"num_frames": request.frames} if self.modality == "video" else {})}

    def drawn(self, out: Any, request: Request) -> Drawn:
        """What the pipeline returned, as one sample."""
        if self.modality == "video":
            frames = np.stack([np.asarray(frame) for frame in out.frames[0]])
            return Drawn(frames=frames, fps=request.fps)
        return Drawn(image=out.images[0])

    def rate(self, parts: Parts) -> int:
        """Samples per second of the sound that the pipeline draws; 0 where it draws none."""
        return 0

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
