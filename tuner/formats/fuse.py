"""Layers of one weight taken apart by rows, and layers of several modules joined into that of their common weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .layers import Layer
from .places import Place

Weight = Callable[[str, str], Tensor | None]
"""(part, module) → the base's weight as numbers, None where no model was given."""
BY_ROW = {
    "lora": ("up", "magnitude", "base_magnitude", "bias"),
    "loha": ("w1_a", "w2_a", "magnitude", "base_magnitude"),
    "glora": ("b1",),
    "ia3": ("weight",),
    "diff": ("weight", "bias"),
    "set": ("weight",),
    "oft_in": (),
}
"""The tensors of each kind that have a row for each row of the weight; the others are common to all."""


def no_weights(part: str, module: str) -> None:
    """A `Weight` for when no model was given."""


def swapped(rows: int) -> Tensor:
    """The order of rows that exchanges their halves."""
    return torch.arange(rows).roll(rows // 2)


def taken(layer: Layer, rows: Tensor, module: str) -> Layer:
    """The part of `layer` for some rows of its weight, in this order, as a layer of `module`.

    Exact for every kind of which it is possible. A LoKr's rows have no factors of their own: they come as a full
    difference. Raises `ValueError` for what mixes the rows (OFT, BOFT, DoRA by columns).
    """
    if layer.kind == "lokr":
        if {"magnitude", "base_magnitude"} & set(layer.tensors):
            raise ValueError("a decomposed LoKr over several modules in one cannot be taken apart without its base")
        return replace(layer, module=module, kind="diff", tensors={"weight": layer.delta()[rows]}, alpha=None)
    if layer.kind not in BY_ROW:
        raise ValueError(f"{layer.kind} over several modules in one mixes their rows and cannot be taken apart")
    own = set(BY_ROW[layer.kind])
    magnitude = layer.tensors.get("magnitude")
    if magnitude is not None and magnitude.ndim > 1 and magnitude.shape[0] == 1:
        raise ValueError("DoRA by columns over several modules in one cannot be taken apart")
    if layer.kind == "ia3" and float(layer.tensors.get("on_input", torch.zeros(1)).flatten()[0]):
        own = set()
    tensors = dict(layer.tensors)
    for name in own & set(tensors):
        across = name in ("w1_a", "w2_a") and f"t{name[1]}" in tensors  # Tucker factors stand the other way round
        tensors[name] = tensors[name][:, rows] if across else tensors[name][rows]
    return trimmed(replace(layer, module=module, tensors=tensors))


def trimmed(layer: Layer) -> Layer:
    """Without the directions that a block-diagonal `up` leaves unused; the product and its scale stay as they are."""
    if layer.kind != "lora" or "mid" in layer.tensors:
        return layer
    up, down = layer.tensors["up"], layer.tensors["down"]
    used = up.flatten(2).any(2).any(0) if up.ndim > 2 else up.any(0)
    if used.all() or not used.any():
        return layer
    tensors = {**layer.tensors, "up": up[:, used], "down": down[used]}
    return replace(layer, tensors=tensors, alpha=layer.scale * int(used.sum()))


def apart(layer: Layer, place: Place) -> list[Layer]:
    """The layers of a place's modules from that of their common weight.

    Modules whose rows are all zero are left out, unless all are. Raises `ValueError` as `taken` does.
    """
    layer = replace(layer, part=place.part)
    if len(place.modules) == 1:
        if place.swapped:
            return [taken(layer, swapped(place.sizes[0]), place.modules[0])]
        return [replace(layer, module=place.modules[0])]
    found, start = [], 0
    for module, size in zip(place.modules, place.sizes, strict=True):
        found.append(taken(layer, torch.arange(start, start + size), module))
        start += size
    changing = [one for one in found if _changes(one)]
    return changing or found


def _changes(layer: Layer) -> bool:
    if {"magnitude", "base_magnitude"} & set(layer.tensors) or layer.kind not in ("lora", "diff"):
        return True
    names = ("up", "bias") if layer.kind == "lora" else ("weight", "bias")
    return any(bool(layer.tensors[n].any()) for n in names if n in layer.tensors)


def together(layers: Sequence[Layer], place: Place, name: str, weight: Weight) -> Layer:
    """One layer `name` of the common weight from those of its modules; modules without a layer are not changed.

    LoRA and LoHa stay what they are (down stacked, up block-diagonal), everything else becomes a full difference.
    Raises `ValueError` where that needs the base and no model was given.
    """
    if len(place.modules) == 1:
        one = replace(layers[0], module=name)
        return taken(one, swapped(place.sizes[0]), name) if place.swapped else one
    by_module = {layer.module: layer for layer in layers}
    given = [by_module.get(m) for m in place.modules]
    kinds = {layer.kind for layer in layers}
    decomposed = any({"magnitude", "base_magnitude"} & set(layer.tensors) for layer in layers)
    by_columns = any(_by_columns(layer) for layer in layers)
    if kinds == {"lora"} and not by_columns and not any("mid" in layer.tensors for layer in layers):
        return _lora(given, place, name, weight if decomposed else None)
    if kinds == {"loha"} and not decomposed and not any("t1" in layer.tensors for layer in layers):
        return _loha(given, place, name)
    deltas = [
        torch.zeros(size, *place.columns)
        if layer is None
        else layer.delta(weight(place.part, layer.module)).cpu().reshape(size, *place.columns)
        for layer, size in zip(given, place.sizes, strict=True)
    ]
    return Layer(place.part, name, "diff", {"weight": torch.cat(deltas), **_bias(given, place)})


def _by_columns(layer: Layer) -> bool:
    magnitude = layer.tensors.get("magnitude")
    return magnitude is not None and magnitude.ndim > 1 and magnitude.shape[0] == 1


def _bias(given: Sequence[Layer | None], place: Place) -> dict[str, Tensor]:
    if not any(layer is not None and layer.bias() is not None for layer in given):
        return {}
    rows = []
    for layer, size in zip(given, place.sizes, strict=True):
        own = None if layer is None else layer.bias()
        rows.append(torch.zeros(size) if own is None else own)
    return {"bias": torch.cat(rows)}


def _alike(layers: Sequence[Layer]) -> float:
    """The scale that all share; 0 where they differ, so that it has to go into the factors."""
    first = layers[0].scale
    return first if all(layer.scale == first for layer in layers) else 0.0


def _lora(given: Sequence[Layer | None], place: Place, name: str, weight: Weight | None) -> Layer:
    there = [layer for layer in given if layer is not None]
    common = _alike(there)
    factor = [1.0 if common or layer is None else layer.scale for layer in given]
    ups = [None if one is None else one.tensors["up"] * f for one, f in zip(given, factor, strict=True)]
    downs = [layer.tensors["down"] for layer in there]
    like = there[0].tensors["up"]
    if common and len(there) == len(given) and all(d.shape == downs[0].shape and d.equal(downs[0]) for d in downs):
        down, up = downs[0], torch.cat([u for u in ups if u is not None])
    else:
        down, up = torch.cat(downs), _diagonal(ups, place, like)
    rank = down.shape[0]
    tensors = {"down": down, "up": up}
    if weight is not None:
        kind = "base_magnitude" if any("base_magnitude" in layer.tensors for layer in there) else "magnitude"
        pairs = zip(given, place.modules, strict=True)
        tensors[kind] = torch.cat([_lengths(layer, kind, weight, (place.part, module)) for layer, module in pairs])
    bias = {k: v / (common or 1.0) for k, v in _bias(given, place).items()}
    return Layer(place.part, name, "lora", {**tensors, **bias}, (common or 1.0) * rank)


def _lengths(layer: Layer | None, kind: str, weight: Weight, module: tuple[str, str]) -> Tensor:
    """[rows]: DoRA's lengths of a module; for one without any, those by which nothing but its own change remains."""
    if layer is not None and kind in layer.tensors:
        return layer.tensors[kind].flatten().float()
    base = weight(*module)
    if base is None:
        raise ValueError(f"joining DoRA layers with {'.'.join(module)}, which has none, needs the base; give the model")
    whole = base.float().cpu()
    if layer is not None and kind == "magnitude":
        whole = whole + layer.delta(base).cpu()
    return whole.flatten(1).norm(dim=1)


def _loha(given: Sequence[Layer | None], place: Place, name: str) -> Layer:
    there = [layer for layer in given if layer is not None]
    common = _alike(there)
    tensors = {}
    for half in ("w1", "w2"):
        # both halves are multiplied elementwise, so a factor goes into one of them
        ups = []
        for layer in given:
            factor = 1.0 if layer is None or common or half == "w2" else layer.scale
            ups.append(None if layer is None else layer.tensors[f"{half}_a"] * factor)
        tensors[f"{half}_a"] = _diagonal(ups, place, there[0].tensors[f"{half}_a"])
        tensors[f"{half}_b"] = torch.cat([layer.tensors[f"{half}_b"] for layer in there])
    return Layer(place.part, name, "loha", tensors, (common or 1.0) * tensors["w1_b"].shape[0])


def _diagonal(blocks: Sequence[Tensor | None], place: Place, like: Tensor) -> Tensor:
    """[rows of all modules, sum of ranks, ...]: each block at its module's rows and its own columns, else zeros."""
    ranks = [0 if b is None else b.shape[1] for b in blocks]
    whole = torch.zeros(sum(place.sizes), sum(ranks), *like.shape[2:], dtype=like.dtype)
    row = column = 0
    for block, size, rank in zip(blocks, place.sizes, ranks, strict=True):
        if block is not None:
            whole[row : row + size, column : column + rank] = block
        row, column = row + size, column + rank
    return whole
