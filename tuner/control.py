"""How a family's network is told by a control picture: data of a family, and what `adapters.controlnet` reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import UserError
from .types import Parts

CONTROLNET = "controlnet"
"""The name of a branch among the components of a model, as its official pipeline calls it."""

Form = Literal["branch", "lora"]


def _alone(x: Tensor, control: Tensor) -> Tensor:
    return torch.cat([x, control], 1)


def _anything(parts: Parts, config: dict[str, Any]) -> str | None:
    return None


@dataclass(frozen=True)
class Branch:
    """A trained copy of a part of the network whose answers are added inside it (Zhang et al. 2023).

    network: its class in diffusers. pipeline: the official one with it. argument: what that one calls the picture.
    make(parts, blocks): a fresh branch, which changes nothing yet.
    ask(parts, told, picture, strength): calls the branch as the official pipeline does, from the arguments `told` of
    the denoiser, and returns the denoiser's further arguments.
    blocks: how many blocks are copied of each run of the network's blocks (with their names) unless the recipe says so;
    () where that is no choice. refuses(parts, config): why an existing branch with this configuration is not trained.
    """

    network: str
    pipeline: str
    argument: str
    make: Callable[[Parts, Sequence[int]], Any]
    ask: Callable[[Parts, dict[str, Any], Tensor, float], dict[str, Any]]
    blocks: tuple[tuple[str, int], ...] = ()
    refuses: Callable[[Parts, dict[str, Any]], str | None] = _anything


@dataclass(frozen=True)
class Widened:
    """The input layer takes the control's latents beside the noisy ones: the form of FLUX.1 [dev] Depth and Canny.

    embedder: full name of that layer. pipeline: the official one for it, "" where there is none: then the family's
    usual pipeline draws, with a hook of ours that hands the network the latents.
    join(x, control): the network's first argument with the control latents [B, C, h, w] in it.
    channels_last: whether the layer's inputs count channels fastest, then the place in the patch.
    """

    embedder: str
    pipeline: str = ""
    join: Callable[[Tensor, Tensor], Tensor] = _alone
    channels_last: bool = False


@dataclass(frozen=True)
class Control:
    """What control a family can be trained for. sees: what the network gets of the picture.

    pixels: [B, 3, H, W] in 0..1. latents: [B, C, h, w], encoded as the family encodes pictures.
    """

    sees: Literal["pixels", "latents"]
    branch: Branch | None = None
    widened: Widened | None = None

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms there are; the first is the usual one."""
        return (*(["branch"] if self.branch else []), *(["lora"] if self.widened else []))  # pyrefly: ignore

    def pipeline(self, form: str) -> str:
        """The official pipeline of a form, "" where there is none."""
        how = self.branch if form == "branch" else self.widened
        return how.pipeline if how else ""


def widen(network: nn.Module, how: Widened) -> None:
    """Give the input layer of `network` as many inputs again, whose weights are zero: its answers do not change."""
    old: Any = network.get_submodule(how.embedder)
    config: Any = network.config
    if type(old) not in (nn.Conv2d, nn.Linear):
        raise UserError(
            f"A control LoRA widens {how.embedder}, which is a {type(old).__name__} here; leave that layer "
            "unquantised, and train without another adapter on it."
        )
    kept = old.weight
    with torch.no_grad():
        if isinstance(old, nn.Conv2d):
            wide: Any = nn.Conv2d(2 * old.in_channels, old.out_channels, old.kernel_size, old.stride, old.padding)  # pyrefly: ignore
            wide.weight = nn.Parameter(torch.cat([kept, torch.zeros_like(kept)], 1), requires_grad=False)
        else:
            wide = nn.Linear(2 * old.in_features, old.out_features, bias=old.bias is not None)
            channels = config.in_channels if how.channels_last else old.in_features
            cells = kept.unflatten(1, (-1, channels))
            wide.weight = nn.Parameter(torch.cat([cells, torch.zeros_like(cells)], 2).flatten(1), requires_grad=False)
    wide.bias = old.bias
    parent, _, name = how.embedder.rpartition(".")
    setattr(network.get_submodule(parent), name, wide)
    if how.pipeline:  # the official pipeline reads from it how many channels it draws, ours must go on as without
        network.register_to_config(in_channels=2 * config.in_channels, out_channels=config.in_channels)  # pyrefly: ignore
