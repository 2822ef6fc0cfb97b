"""Plain values that cross module borders. Imports torch and nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

Cond = dict[str, Any]
"""What the denoiser is told beside the noisy input. One item: unpadded tensors; a batch: collated tensors."""


def on_device(cond: Cond, device: torch.device | str) -> Cond:
    """A condition with its tensors on `device`, also those in lists (captions of different length)."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        return [moved(v) for v in value] if isinstance(value, list) else value

    return {k: moved(v) for k, v in cond.items()}


@dataclass(slots=True)
class Media:
    """What a family encodes into latents: items of one bucket.

    pixels: [B, 3, H, W] pictures or [B, 3, F, H, W] clips in -1..1, None for sound alone. fps: of the clips.
    sound: [B, channels, samples] in -1..1 at the family's rate, or None. references: one [B, 3, h, w] in -1..1 per
    picture that an item is edited from (image_to_video: the first frame, where it is not the clip's own).
    """

    pixels: Tensor | None = None
    sound: Tensor | None = None
    fps: float = 0.0
    references: tuple[Tensor, ...] = ()

    def to(self, device: torch.device | str) -> Media:
        """The same on `device`."""
        return Media(
            None if self.pixels is None else self.pixels.to(device),
            None if self.sound is None else self.sound.to(device),
            self.fps,
            tuple(r.to(device) for r in self.references),
        )


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a family's text encoders are told of one item.

    text: the caption. The rest is filled only where `Family.reads` names it. references: [3, h, w] in -1..1 each.
    lyrics: words that are sung. seconds: length of the sound.
    """

    text: str
    references: tuple[Tensor, ...] = ()
    lyrics: str = ""
    seconds: float = 0.0


@dataclass(slots=True)
class Drawn:
    """One validation sample.

    image: PIL. frames: uint8 [F, H, W, 3] at `fps`. sound: float32 [C, T] at `rate` samples a second.
    """

    image: Any = None
    frames: np.ndarray | None = None
    fps: float = 0.0
    sound: np.ndarray | None = None
    rate: int = 0


@dataclass(slots=True)
class Batch:
    """One forward pass worth of items from a single bucket.

    latents: [B, C, ...] normalised clean latents (float32). cond: collated conditions. keys: one name per item.
    draws: the place of each item among all items of its optimiser step (over ranks and micro-batches); it seeds
    the item's noise, so that the noise does not depend on how a step is cut into forward passes.
    of: the number of items of the whole optimiser step. mask: [B, 1, h, w] in 0..1 at latent resolution, or None.
    role, strength: as in the items' data set. control: [B, 3, H, W] in -1..1 at the size of the picture, or None.
    captions: the text that each item is shown with, "" where it was dropped.
    """

    latents: Tensor
    cond: Cond
    keys: tuple[str, ...]
    draws: tuple[int, ...]
    of: int
    mask: Tensor | None = None
    role: Literal["train", "regularisation", "validation"] = "train"
    strength: float = 1.0
    control: Tensor | None = None
    captions: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        cond = on_device(self.cond, device)
        mask = None if self.mask is None else self.mask.to(device)
        control = None if self.control is None else self.control.to(device)
        return replace(self, latents=self.latents.to(device), cond=cond, mask=mask, control=control)


@dataclass(slots=True)
class Noised:
    """What the objective made of a batch: the model's input, and what it should answer.

    x, noise, target: like the latents. t: [B] in [0, 1], 0 = data, 1 = noise. weight: [B] or None.
    """

    x: Tensor
    t: Tensor
    noise: Tensor
    target: Tensor
    weight: Tensor | None = None


@dataclass(slots=True)
class Parts:
    """The loaded components of one model, by their names in `model_index.json`; absent ones are not loaded.

    pipeline: the class in that index, by which families of several pipelines know the variant.
    """

    denoiser: str
    components: dict[str, Any] = field(default_factory=dict)
    pipeline: str = ""

    def __getitem__(self, name: str) -> Any:
        if self.components.get(name) is None:
            raise AssertionError(f"the component {name!r} was not loaded for this phase")
        return self.components[name]

    @property
    def network(self) -> nn.Module:
        """The network that is trained."""
        return self[self.denoiser]


def per_sample(x: Tensor) -> Tensor:
    """Mean over all but the first axis: [B, ...] → [B]."""
    return x.flatten(1).mean(1)


def expand(v: Tensor, like: Tensor) -> Tensor:
    """[B] → [B, 1, 1, ...] with the number of axes and the dtype of `like`."""
    return v.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)


def generator(seed: int) -> torch.Generator:
    """A CPU generator, so that draws are the same on every device."""
    return torch.Generator().manual_seed(seed)
