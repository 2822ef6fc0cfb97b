"""Plain values that cross module borders. Imports torch and nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

Cond = dict[str, Any]
"""What the denoiser is told beside the noisy input. One item: unpadded tensors; a batch: collated tensors."""


@dataclass(slots=True)
class Batch:
    """One forward pass worth of items from a single bucket.

    latents: [B, C, ...] normalised clean latents (float32). cond: collated conditions. keys: one name per item.
    draws: the place of each item among all items of its optimiser step (over ranks and micro-batches); it seeds
    the item's noise, so that the noise does not depend on how a step is cut into forward passes.
    of: the number of items of the whole optimiser step. mask: [B, 1, h, w] in 0..1 at latent resolution, or None.
    """

    latents: Tensor
    cond: Cond
    keys: tuple[str, ...]
    draws: tuple[int, ...]
    of: int
    mask: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on `device`."""
        cond = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.cond.items()}
        mask = None if self.mask is None else self.mask.to(device)
        return replace(self, latents=self.latents.to(device), cond=cond, mask=mask)


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
    """The loaded components of one model, by their names in `model_index.json`; absent ones are not loaded."""

    denoiser: str
    components: dict[str, Any] = field(default_factory=dict)

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
