"""A LoRA at another rank: the best one there is (Eckart and Young 1936), layer by layer, with its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..errors import UserError
from ..formats.layers import Layer
from .kept import Kept
from .lowrank import DECOMPOSED, Cut, distance, dtype_of, factors, of_factors, plain, product_norm, shape


def resize(layers: Sequence[Layer], cut: Cut, dtype: torch.dtype | None = None) -> tuple[list[Layer], list[Kept]]:
    """Cut every LoRA layer to `cut`; full differences (norms, biases) stay as they are.

    dtype: of what is made, the layers' own by default; its rounding is part of the error. A DoRA keeps its magnitudes,
    and its error is that of the product below them. Raises `UserError` for kinds that have no rank to cut.
    """
    wide = dtype or dtype_of(layers)
    done: list[Layer] = []
    kept: list[Kept] = []
    for layer in layers:
        if layer.kind == "diff":
            done.append(layer)
            continue
        if layer.kind != "lora":
            raise UserError(
                f"{layer.part}.{layer.module} is a {layer.kind}, which has no rank to cut; turn the file into a plain "
                "LoRA first: `lora convert IN OUT --as-lora RANK`."
            )
        new, stated = _one(layer, cut, wide)
        done.append(new)
        kept.append(stated)
    return done, kept


def _one(layer: Layer, cut: Cut, dtype: torch.dtype) -> tuple[Layer, Kept]:
    more = {k: layer.tensors[k] for k in (*DECOMPOSED, "bias") if k in layer.tensors}
    bare = replace(layer, tensors={k: v for k, v in layer.tensors.items() if k not in more})
    pair = factors(bare)
    assert pair is not None
    found = of_factors(*pair)
    new = plain(layer.part, layer.module, found.cut(cut.of(found.values)), shape(bare), dtype)
    made = factors(new)
    assert made is not None
    if "bias" in more:
        more["bias"] = (layer.scale * more["bias"].float()).to(dtype)
    stated = Kept(layer.part, layer.module, new.rank, product_norm(*pair), distance(pair, made))
    return replace(new, tensors={**new.tensors, **more}), stated
