"""EMA: an exponential moving average of what trains, used for samples and for the result (Polyak & Juditsky 1992).

average ← d * average + (1 - d) * weights after every `every` optimiser steps. The optimiser never sees the average.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..extension import Context, Extension, Settings, extension
from ..recipe import setting


class EmaSettings(Settings):
    """See the module."""

    decay: float = setting(
        0.999, "Share of the old average that each update keeps; 0.999 looks back about 1000 updates", ge=0, lt=1
    )
    warmup: bool = setting(
        True, "Follow faster at first: update i keeps at most (1 + i) / (10 + i), so that short runs forget the start"
    )
    every: int = setting(1, "Optimiser steps between two updates of the average", "expert", ge=1)


@extension
class Ema(Extension):
    """Averages the adapter's parameters and puts the average in place for validation and export."""

    kind = "ema"
    title = "Averaged weights (EMA)"
    Settings = EmaSettings

    def attach(self, context: Context) -> None:
        """The average starts as a copy of the weights."""
        self._weights: list[nn.Parameter] = context.adapter.parameters()
        self._other: list[Tensor] = [p.detach().clone() for p in self._weights]
        self._swapped = False

    def decay(self, update: int) -> float:
        """Share of the old average that update number `update` (1 for the first) keeps."""
        return min(self.settings.decay, (1 + update) / (10 + update)) if self.settings.warmup else self.settings.decay

    @property
    def average(self) -> list[Tensor]:
        """The averaged tensors, wherever they are at the moment."""
        return [p.detach() for p in self._weights] if self._swapped else self._other

    @torch.no_grad()
    def on_stepped(self, index: int) -> None:
        """Move the average towards the weights."""
        if self._swapped:
            raise AssertionError("an optimiser step inside sampling() would train the average")
        if index % self.settings.every == 0:
            share = 1 - self.decay(index // self.settings.every)
            torch._foreach_lerp_(self._other, [p.detach() for p in self._weights], share)

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, the network holds the average; afterwards the weights are back bit for bit. May be nested."""
        if self._swapped:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange contents tensor by tensor, so that no third copy of the weights is needed."""
        for weight, other in zip(self._weights, self._other, strict=True):
            kept = weight.detach().clone()
            weight.copy_(other)
            other.copy_(kept)
        self._swapped = not self._swapped

    def state_dict(self) -> dict[str, Any]:
        """The average, on the CPU."""
        return {"average": [t.to("cpu", copy=True) for t in self.average]}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        saved = state["average"]
        if [t.shape for t in saved] != [t.shape for t in self.average]:
            raise AssertionError("the saved average does not fit what trains")
        for own, value in zip(self.average, saved, strict=True):
            own.copy_(value)
