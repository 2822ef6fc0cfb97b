"""The only door through which a technique enters the training step.

A technique is one file with one class. It overrides the points it needs; points it leaves alone
cost nothing, because `Stack` collects the overridden methods once and the loop folds over those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .adapter import Adapter
from .errors import UserError
from .family import Family
from .recipe import Model, Recipe
from .seeds import mix
from .types import Batch, Cond, Noised, generator


class Settings(Model):
    """Base of an extension's settings."""


@dataclass(frozen=True)
class Context:
    """What an extension may hold on to for the whole run."""

    family: Family
    denoiser: nn.Module
    adapter: Adapter
    steps: int


@dataclass
class Step:
    """What an extension may see of one forward pass. `predict` may be called again.

    index: optimiser steps done before this one. part: number of the forward pass within the step.
    routed: ids [K] of the media tokens that a routing extension kept in this step, or None.
    """

    index: int
    part: int
    seed: int
    batch: Batch
    noised: Noised
    predict: Callable[[Tensor, Tensor, Cond], Tensor]
    prediction: Tensor | None = None
    routed: Tensor | None = None

    def rng(self, purpose: str) -> torch.Generator:
        """A CPU generator that depends on the seed, the step and the purpose only: resuming repeats it."""
        return generator(mix(self.seed, "extension", purpose, self.index, self.part))


class Extension:
    """One technique. Override the points it needs."""

    kind: ClassVar[str]
    title: ClassVar[str]
    Settings: ClassVar[type[Settings]] = Settings
    conflicts: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = frozenset()
    """Settings of a data set that the technique acts on: mask, control, reference, strength."""

    def __init__(self, settings: Settings) -> None:
        self.settings: Any = settings

    def refuses(self, family: Family, recipe: Recipe) -> str | None:
        """A sentence for the user when this family or recipe cannot carry the technique."""
        return None

    def attach(self, context: Context) -> None:
        """Once, when the network and its adapter stand: register hooks, keep what is needed."""

    def on_batch(self, batch: Batch, index: int) -> Batch:
        """Replace the batch before it is noised."""
        return batch

    def on_noised(self, step: Step) -> None:
        """Change input or target before the network is asked."""

    def around(self, step: Step) -> AbstractContextManager[None]:
        """Spans forward and backward: checkpointing replays the forward inside the backward."""
        return nullcontext()

    def on_loss(self, elementwise: Tensor, step: Step) -> Tensor:
        """Reweigh the elementwise error [B, ...]."""
        return elementwise

    def extra_loss(self, step: Step) -> dict[str, Tensor]:
        """Named terms that are added to the loss and logged."""
        return {}

    def on_stepped(self, index: int) -> None:
        """After the optimiser's step number `index` (1 for the first)."""

    def sampling(self) -> AbstractContextManager[None]:
        """Spans validation and export: EMA puts its averaged weights in place here."""
        return nullcontext()

    def parameters(self) -> list[nn.Parameter]:
        """Further parameters to train."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: tensors, numbers, strings, lists and dicts of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""


EXTENSIONS: dict[str, type[Extension]] = {}


def extension(cls: type[Extension]) -> type[Extension]:
    """Class decorator: make a technique known by its kind."""
    if cls.kind in EXTENSIONS:
        raise AssertionError(f"extension {cls.kind!r} is registered twice")
    EXTENSIONS[cls.kind] = cls
    return cls


class Stack:
    """The extensions of one run, in recipe order."""

    POINTS = ("on_batch", "on_noised", "around", "on_loss", "extra_loss", "on_stepped", "sampling")

    def __init__(self, extensions: Sequence[Extension] = ()) -> None:
        self.extensions = list(extensions)
        kinds = [e.kind for e in self.extensions]
        for e in self.extensions:
            if kinds.count(e.kind) > 1:
                raise UserError(f"extensions: {e.kind} stands twice; keep one.")
            if clash := e.conflicts.intersection(kinds):
                raise UserError(f"extensions: {e.kind} cannot be combined with {', '.join(sorted(clash))}; remove one.")
        self._point = {
            name: [getattr(e, name) for e in self.extensions if self._overrides(e, name)] for name in self.POINTS
        }

    @staticmethod
    def _overrides(e: Extension, name: str) -> bool:
        return getattr(type(e), name) is not getattr(Extension, name)

    def hooks(self) -> list[str]:
        """What acts in this run, for the journal: "tread.around" and so on."""
        return [f"{e.kind}.{name}" for e in self.extensions for name in self.POINTS if self._overrides(e, name)]

    def attach(self, context: Context) -> None:
        """See `Extension.attach`."""
        for e in self.extensions:
            e.attach(context)

    def batch(self, batch: Batch, index: int) -> Batch:
        """See `Extension.on_batch`."""
        for hook in self._point["on_batch"]:
            batch = hook(batch, index)
        return batch

    def noised(self, step: Step) -> None:
        """See `Extension.on_noised`."""
        for hook in self._point["on_noised"]:
            hook(step)

    def around(self, step: Step) -> AbstractContextManager[None]:
        """See `Extension.around`."""
        return self._entered("around", step)

    def sampling(self) -> AbstractContextManager[None]:
        """See `Extension.sampling`."""
        return self._entered("sampling")

    @contextmanager
    def _entered(self, point: str, *args: Any) -> Iterator[None]:
        with ExitStack() as stack:
            for hook in self._point[point]:
                stack.enter_context(hook(*args))
            yield

    def loss(self, elementwise: Tensor, step: Step) -> Tensor:
        """See `Extension.on_loss`."""
        for hook in self._point["on_loss"]:
            elementwise = hook(elementwise, step)
        return elementwise

    def extra(self, step: Step) -> dict[str, Tensor]:
        """See `Extension.extra_loss`."""
        return {k: v for hook in self._point["extra_loss"] for k, v in hook(step).items()}

    def stepped(self, index: int) -> None:
        """See `Extension.on_stepped`."""
        for hook in self._point["on_stepped"]:
            hook(index)

    def parameters(self) -> list[nn.Parameter]:
        """See `Extension.parameters`."""
        return [p for e in self.extensions for p in e.parameters()]

    def state_dict(self) -> dict[str, Any]:
        """One entry per extension that has state."""
        return {e.kind: state for e in self.extensions if (state := e.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give every extension its own entry back."""
        for e in self.extensions:
            if e.kind in state:
                e.load_state_dict(state[e.kind])
