"""Samples with other adapters or strengths than the one that is trained, without a trace in the training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import nn

from .adapter import Adapter
from .formats import apply
from .formats.layers import Layer
from .recipe import Sweep

Read = Callable[[Path], Sequence[Layer]]
"""The layers of an adapter file that are this network's."""


@contextmanager
def swept(sweep: Sweep, network: nn.Module, adapter: Adapter, read: Read) -> Iterator[None]:
    """Within, the network answers as the sweep says; afterwards as before.

    Files are read anew each time and held only meanwhile, so that a long list takes no memory from the training.
    """
    with ExitStack() as stack:
        for one in sweep.adapters:
            stack.callback(apply.over(network, read(Path(one.path)), one.strength).remove)
        if sweep.trained != 1.0:
            stack.enter_context(adapter.scaled(sweep.trained))
        yield
