"""What trains: the protocol of all adapters, and the plainest one, the whole network."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .formats.layers import Layer
from .source import Source


@dataclass(frozen=True)
class Written:
    """One result on disk. format: diffusers, comfyui, kohya, lycoris, peft, model, controlnet.

    loads_in: the programs as whose loader it was opened again with every key understood and the live adapter's change
    of the weights found. problems: what was wrong, one sentence each; empty when it is as it should be.
    """

    path: Path
    format: str
    loads_in: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class Adapter(Protocol):
    """What the loop, the checkpoint and the techniques need of whatever trains."""

    def parameters(self) -> list[nn.Parameter]:
        """What the optimiser updates; always float32."""
        ...

    def scaled(self, strength: float) -> AbstractContextManager[None]:
        """Run the network with the adapter's effect times `strength`. Raises `UserError` where that has no meaning."""
        ...

    def disabled(self) -> AbstractContextManager[None]:
        """Run the network without the adapter. Raises `UserError` where there is no network without it."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """The trained tensors by stable names, on the CPU, contiguous."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave; every name must match."""
        ...

    def metadata(self) -> dict[str, str]:
        """What the header of a file with this state must say for other programs to read it rightly."""
        ...


@runtime_checkable
class Layered(Protocol):
    """An adapter that is a change of modules, and so is written in every format of adapter files (`export.adapter`)."""

    def layers(self) -> list[Layer]:
        """What it says of each module as it stands: on the CPU, in float32."""
        ...


@runtime_checkable
class Writes(Protocol):
    """An adapter with files of its own kind: a whole model, a ControlNet, what peft alone reads."""

    def export(self, folder: Path, source: Source, pipeline: Any) -> list[Written]:
        """Write the result below `folder`, open it again and compare with what trained; the main file first.

        source: the base model. pipeline: the family's official pipeline class.
        """
        ...


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies on the CPU."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}


def take(module: nn.Module, state: dict[str, Tensor], names: set[str]) -> None:
    """Copy `state` into the parameters of `module` called `names`; both sets of names must be equal."""
    if names != set(state):
        raise AssertionError(f"checkpoint and adapter differ in {sorted(names ^ set(state))[:5]}")
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name in names:
            own[name].copy_(state[name])


class Named:
    """Part of an adapter whose trained tensors stand in the denoiser: `names` gives each its stable name."""

    denoiser: Any
    names: dict[str, str]
    """Name in the denoiser → name in checkpoints and files."""

    def parameters(self) -> list[nn.Parameter]:
        """See `Adapter.parameters`."""
        own = dict(self.denoiser.named_parameters())
        return [own[n] for n in self.names]

    def state_dict(self) -> dict[str, Tensor]:
        """See `Adapter.state_dict`."""
        own = dict(self.denoiser.named_parameters())
        return on_cpu({stable: own[name] for name, stable in self.names.items()})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load_state_dict`."""
        back = {stable: name for name, stable in self.names.items()}
        take(self.denoiser, {back.get(k, k): v for k, v in state.items()}, set(self.names))
