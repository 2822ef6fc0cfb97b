"""An adapter file in another dialect, or of another kind: any kind as a plain LoRA with the residual stated."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..formats.layers import Layer
from .kept import Kept
from .lowrank import Cut, factors
from .merge import Base, decomposed


def as_lora(layers: Sequence[Layer], rank: int, base: Base, dtype: torch.dtype) -> tuple[list[Layer], list[Kept]]:
    """Every layer as a plain LoRA of at most `rank`; LoRAs that are plain already, norms and biases stay as they are.

    base: the weights that DoRA, OFT, GLoRA and IA3 depend on. The residual is that of the best approximation.
    """
    cut = Cut(rank=rank)
    done: list[Layer] = []
    kept: list[Kept] = []
    for layer in layers:
        plain = layer.kind == "lora" and "mid" not in layer.tensors and factors(layer) is not None
        flat = layer.kind == "diff" and ("weight" not in layer.tensors or layer.tensors["weight"].ndim < 2)
        if plain or flat:
            done.append(layer)
            continue
        new, stated = decomposed(layer, cut, base, dtype)
        done.append(new)
        kept.append(stated)
    return done, kept
