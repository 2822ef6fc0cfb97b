"""Several adapters as one: their changes of the weights, each times its strength, added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ..errors import UserError
from ..formats.layers import Layer
from .kept import Kept
from .lowrank import DECOMPOSED, Cut, distance, dtype_of, factors, of_factors, of_matrix, plain, product_norm, shape

Method = Literal["concat", "svd", "dense"]
Base = Callable[[Layer], Tensor | None]
"""The base's weight of a layer's module, None where no model was given."""
Weighted = Sequence[tuple[Layer, float]]
"""What is added up for one module, each with its strength."""
LINEAR = {"loha": ("w1_a",), "lokr": ("w1_a", "w1"), "diff": ("weight", "bias")}
"""Kinds whose change grows with these tensors (the first of those that are there; of `diff`, all)."""


def no_model(layer: Layer) -> Tensor | None:
    """No base's weights are known."""
    return None


def change(layer: Layer, base: Base) -> Tensor:
    """`Layer.delta` with the base's weight. Raises `UserError` where that is needed and no model was given."""
    try:
        return layer.delta(base(layer))
    except ValueError as error:
        raise UserError(f"{error} with --model and --family.") from None
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{layer.part}.{layer.module}: its shapes do not fit ({first}); the file is damaged, or of another model."
        ) from None


def merge(
    inputs: Sequence[tuple[Sequence[Layer], float]],
    method: Method,
    cut: Cut | None = None,
    base: Base = no_model,
    dtype: torch.dtype | None = None,
) -> tuple[list[Layer], list[Kept]]:
    """Add up adapters, each given as (layers, strength), over all their modules.

    concat: exact; factors stand side by side, ranks add up. svd: the best LoRA at `cut` of the exact sum, any kinds.
    dense: the sum itself as a full difference, exact and large, any kinds.
    dtype: of what is made, the widest of the inputs' by default; its rounding is part of the error.
    """
    wide = dtype or dtype_of(layer for layers, _ in inputs for layer in layers)
    groups: dict[tuple[str, str, bool], list[tuple[Layer, float]]] = {}
    for layers, strength in inputs:
        for layer in layers:
            alone = layer.kind == "diff" and "weight" not in layer.tensors  # a bias may stand beside a LoRA
            groups.setdefault((layer.part, layer.module, alone), []).append((layer, strength))
    done: list[Layer] = []
    kept: list[Kept] = []
    for group in groups.values():
        if method == "concat":
            new, stated = _concat(group, base, wide)
        elif method == "svd" and cut is not None and _has_matrix(group):
            new, stated = _svd(group, cut, base, wide)
        else:
            new, stated = _dense(group, base, wide)
        done.append(new)
        kept.append(stated)
    return done, kept


def _concat(group: Weighted, base: Base, dtype: torch.dtype) -> tuple[Layer, Kept]:
    first = group[0][0]
    if all(layer.kind == "lora" and factors(layer) is not None for layer, _ in group):
        up, down = _side_by_side(group)
        new = _with_bias(plain(first.part, first.module, (up, down), _same_shape(group), dtype), group, dtype)
        return new, _stated(new, (up, down))
    if all(layer.kind == "diff" for layer, _ in group):
        return _dense(group, base, dtype)
    if len(group) == 1:
        layer, strength = group[0]
        new = _scaled(layer, strength)
        if strength == 1.0:  # as it was; kinds that need the base's weight could not even be measured
            return new, Kept(layer.part, layer.module, layer.rank, 0.0, 0.0)
        whole = strength * change(layer, base)
        return new, Kept(layer.part, layer.module, layer.rank, whole.norm().item(), _off(change(new, base), whole))
    kinds = " and ".join(sorted({_kind(layer) for layer, _ in group}))
    raise UserError(
        f"{first.part}.{first.module} is changed by {kinds}, and --method concat puts plain LoRAs side by side only; "
        "take --method svd --rank R, or --method dense."
    )


def _scaled(layer: Layer, strength: float) -> Layer:
    """One layer times its strength in its own kind. Raises `UserError` for kinds that do not grow in proportion."""
    if strength == 1.0:
        return layer
    names = [n for n in LINEAR.get(layer.kind, ()) if n in layer.tensors]
    if not names or set(DECOMPOSED) & set(layer.tensors):
        raise UserError(
            f"{layer.part}.{layer.module} is {_kind(layer)}, whose files hold no strength; take --method svd --rank R, "
            "or --method dense, with --model."
        )
    wanted = names if layer.kind == "diff" else names[:1]
    return replace(layer, tensors={k: v * strength if k in wanted else v for k, v in layer.tensors.items()})


def _kind(layer: Layer) -> str:
    names = {"lora": "LoRA", "diff": "a full difference"}
    return "DoRA" if set(DECOMPOSED) & set(layer.tensors) else names.get(layer.kind, layer.kind)


def _svd(group: Weighted, cut: Cut, base: Base, dtype: torch.dtype) -> tuple[Layer, Kept]:
    first = group[0][0]
    if all(factors(layer) is not None for layer, _ in group):
        pair = _side_by_side(group)
        found, size = of_factors(*pair), _same_shape(group)
        new = plain(first.part, first.module, found.cut(cut.of(found.values)), size, dtype)
        return _with_bias(new, group, dtype), _stated(new, pair)
    whole = _sum(group, base)
    found = of_matrix(whole.flatten(1))
    new = plain(first.part, first.module, found.cut(cut.of(found.values)), tuple(whole.shape), dtype)
    stated = Kept(first.part, first.module, new.rank, whole.double().norm().item(), _off(new.delta(), whole))
    return _with_bias(new, group, dtype), stated


def _dense(group: Weighted, base: Base, dtype: torch.dtype) -> tuple[Layer, Kept]:
    first, tensors, size, missing = group[0][0], {}, 0.0, 0.0
    with_weight = [(layer, s) for layer, s in group if layer.kind != "diff" or "weight" in layer.tensors]
    if with_weight:
        whole = _sum(with_weight, base)
        tensors["weight"] = whole.to(dtype)
        size, missing = whole.double().norm().item(), _off(tensors["weight"], whole)
    new = _with_bias(Layer(first.part, first.module, "diff", tensors), group, dtype)
    return new, Kept(first.part, first.module, None, size, missing)


def _side_by_side(group: Weighted) -> tuple[Tensor, Tensor]:
    """The factors of the sum, strengths and scales folded into up; float64."""
    _same_shape(group)
    pairs = [(factors(layer), strength) for layer, strength in group]
    ups, downs = zip(*((strength * pair[0], pair[1]) for pair, strength in pairs if pair), strict=True)
    return torch.cat(ups, 1), torch.cat(downs, 0)


def _same_shape(group: Weighted) -> tuple[int, ...]:
    shapes = [shape(layer) for layer, _ in group]
    if len(set(shapes)) > 1:
        first = group[0][0]
        raise _unequal(first, shapes)
    return shapes[0]


def _unequal(layer: Layer, shapes: Sequence[tuple[int, ...]]) -> UserError:
    told = " and ".join(str(list(s)) for s in dict.fromkeys(shapes))
    return UserError(
        f"{layer.part}.{layer.module} has the shapes {told} in these files; they were made for different models."
    )


def _sum(group: Weighted, base: Base) -> Tensor:
    changes = [change(layer, base) for layer, _ in group]
    if len({c.shape for c in changes}) > 1:
        raise _unequal(group[0][0], [tuple(c.shape) for c in changes])
    whole = torch.zeros_like(changes[0], dtype=torch.float64)
    for one, (_, strength) in zip(changes, group, strict=True):
        whole += strength * one.double()
    return whole.float()


def _has_matrix(group: Weighted) -> bool:
    """Whether any of the layers changes a matrix: norms and biases alone have nothing to decompose."""
    return any(layer.kind != "diff" or ("weight" in layer.tensors and layer.tensors["weight"].ndim > 1)
               for layer, _ in group)  # fmt: skip


def _with_bias(new: Layer, group: Weighted, dtype: torch.dtype) -> Layer:
    try:
        given = [strength * bias for layer, strength in group if (bias := layer.bias()) is not None]
    except ValueError as error:
        raise UserError(f"{error}.") from None
    if not given:
        return new
    return replace(new, tensors={**new.tensors, "bias": torch.stack(given).sum(0).to(dtype)})


def _stated(new: Layer, pair: tuple[Tensor, Tensor]) -> Kept:
    made = factors(new)
    assert made is not None
    return Kept(new.part, new.module, new.rank, product_norm(*pair), distance(pair, made))


def _off(made: Tensor, wanted: Tensor) -> float:
    return (made.double() - wanted.double()).norm().item()


def decomposed(layer: Layer, cut: Cut, base: Base, dtype: torch.dtype) -> tuple[Layer, Kept]:
    """One layer of any kind as the best plain LoRA at `cut`."""
    return _svd([(layer, 1.0)], cut, base, dtype)
