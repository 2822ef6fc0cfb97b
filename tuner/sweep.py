"""Samples with other adapters or strengths than the one that is trained, without a trace in the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import nn

from .adapter import Adapter
from .formats import apply
from .formats.layers import Layer
from .recipe import Sweep

Read = Callable[[Path], Sequence[Layer]]
"""The layers of an adapter file that are of this model."""


@contextmanager
def swept(
    sweep: Sweep, files: Sequence[Sequence[Layer]], networks: Mapping[str, nn.Module], adapter: Adapter
) -> Iterator[None]:
    """Within, the networks answer as the sweep says; afterwards as before.

    files: the layers of each of its adapters. networks: part -> denoiser or text encoder, of all parts in them.
    """
    with ExitStack() as stack:
        for one, layers in zip(sweep.adapters, files, strict=True):
            for applied in apply.over_parts(networks, layers, one.strength):
                stack.callback(applied.remove)
        if sweep.trained != 1.0:
            stack.enter_context(adapter.scaled(sweep.trained))
        yield
