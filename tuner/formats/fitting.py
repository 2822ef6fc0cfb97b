"""Whether the tensors of a layer fit each other and the weight that it changes: before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import UserError
from .layers import Layer

AXES: dict[str, dict[str, str]] = {
    "lora": {"down": "r i", "up": "o r", "bias": "o"},
    "tucker": {"down": "r i", "up": "o s", "mid": "s r", "bias": "o"},
    "loha": {"w1_a": "o r", "w1_b": "r i", "w2_a": "o s", "w2_b": "s i"},
    "loha tucker": {"w1_a": "r o", "w1_b": "r i", "w2_a": "s o", "w2_b": "s i", "t1": "r r", "t2": "s s"},
    "lokr": {"w1": "a c", "w1_a": "a r", "w1_b": "r c", "w2": "b d", "w2_a": "b s", "w2_b": "s d"},
    "lokr tucker": {"w1": "a c", "w1_a": "a r", "w1_b": "r c", "w2_a": "s b", "w2_b": "s d", "t2": "s s"},
    "oft": {"blocks": "n k k", "rescale": "o"},
    "boft": {"blocks": "m n k k", "rescale": "o"},
    "oft_in": {"rotations": "n k k"},
    "glora": {"a1": "i r", "a2": "r i", "b1": "o s", "b2": "s i", "bm": "s s"},
    "ia3": {"weight": "", "on_input": ""},
    "diff": {"weight": "o", "bias": "o"},
    "set": {"weight": "o", "bias": "o"},
}
"""What the first axes of a layer's tensors are: the same letter is the same length, `o` and `i` those of the weight."""
DENSE = 2**30
"""Numbers: no layer of any network has so many, and a few bytes of factors could ask for them."""


def checked(layer: Layer, where: str) -> Layer:
    """The same layer. where: how the sentence begins. Raises `UserError` for tensors that change no weight at all."""
    shape = _own_shape(layer, _lengths(layer, where))
    total = 1
    for size in shape:
        total *= size
    if total > DENSE:
        raise UserError(
            f"{where} is made for a weight of shape {list(shape)}, which no network has; the file is broken, fetch it "
            "again."
        )
    if not fits(layer, shape):
        raise UserError(
            f"{where} has tensors of shapes {_shown(layer)}, which change no weight; the file is broken, fetch it "
            "again."
        )
    return layer


def fractions(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise `UserError` for whole or complex numbers. where: how the sentence begins."""
    for name, value in tensors.items():
        if not value.is_floating_point() and (name != "on_input" or value.is_complex()):
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(
                f"{where} keeps {name} as {kind}, where an adapter has fractions; the file is broken, fetch it again."
            )


def fits(layer: Layer, shape: tuple[int, ...]) -> bool:
    """Whether the layer can change a weight of this shape. Nothing of that size is held."""
    try:
        _alone(layer).delta(torch.empty(shape, device="meta"))
        return all(_long(layer, shape))
    except (RuntimeError, IndexError, ValueError):
        return False


def weight_shape(layer: Layer) -> tuple[int, ...]:
    """The shape of the weight that a layer changes, as far as its tensors tell: () where they do not."""
    t = layer.tensors
    if layer.kind == "lora":
        rest = t["mid"].shape[2:] if "mid" in t else t["down"].shape[2:]
        return t["up"].shape[0], t["down"].shape[1], *rest
    if layer.kind == "loha":
        across = "t1" in t
        return t["w1_a"].shape[1 if across else 0], t["w1_b"].shape[1], *(t["t1"].shape[2:] if across else ())
    if layer.kind == "lokr":
        return _lokr_shape(t)
    if layer.kind in ("diff", "set") and "weight" in t:
        return tuple(t["weight"].shape)
    return ()


def _lokr_shape(t: Mapping[str, Tensor]) -> tuple[int, ...]:
    first = t["w1"].shape if "w1" in t else (t["w1_a"].shape[0], t["w1_b"].shape[1])
    if "w2" in t:
        second = tuple(t["w2"].shape)
    elif "t2" in t:
        second = (t["w2_a"].shape[1], t["w2_b"].shape[1], *t["t2"].shape[2:])
    else:
        second = (t["w2_a"].shape[0], *t["w2_b"].shape[1:])
    return first[0] * second[0], first[1] * second[1], *second[2:]


def _lengths(layer: Layer, where: str) -> dict[str, int]:
    """Letter of an axis → its length. Raises `UserError` when one letter has two."""
    tucker = {"mid": "tucker", "t1": "loha tucker", "t2": f"{layer.kind} tucker"}
    kind = next((name for slot, name in tucker.items() if slot in layer.tensors), layer.kind)
    known: dict[str, int] = {}
    for slot, axes in AXES[kind].items():
        if slot not in layer.tensors:
            continue
        shape, letters = layer.tensors[slot].shape, axes.split()
        agree = len(shape) >= len(letters)
        for letter, size in zip(letters, shape, strict=False):
            agree = agree and known.setdefault(letter, size) == size
        if not agree:
            raise UserError(
                f"{where} has tensors of shapes {_shown(layer)}, whose sizes do not agree; the file is broken, fetch "
                "it again."
            )
    return known


def _own_shape(layer: Layer, known: Mapping[str, int]) -> tuple[int, ...]:
    """Some weight that the layer could change, where its own tensors do not tell all of it."""
    shape = weight_shape(layer)
    if not shape and layer.kind in ("oft", "boft"):
        shape = known["n"] * known["k"], 1
    elif not shape and layer.kind == "oft_in":
        shape = 1, known["n"] * known["k"]
    elif not shape and layer.kind == "glora":
        shape = known["o"], known["i"], *layer.tensors["b2"].shape[2:]
    elif not shape and layer.kind == "ia3":
        shape = (layer.tensors["weight"].numel(),) * 2
    return shape or (known.get("o", 1), 1)


def _alone(layer: Layer) -> Layer:
    """The layer without its numbers; a limit of rotations, which would look at them, is left out."""
    tensors = {k: v if k == "on_input" else torch.empty(v.shape, device="meta") for k, v in layer.tensors.items()}
    return replace(layer, tensors=tensors, alpha=None)


def _long(layer: Layer, shape: tuple[int, ...]) -> Iterator[bool]:
    """Whether those tensors that would be spread over a longer axis have its length."""
    t = layer.tensors
    for name in ("bias", "rescale", "base_magnitude", "magnitude"):
        if name in t:
            columns = name == "magnitude" and t[name].ndim > 1 and t[name].shape[0] == 1
            yield t[name].numel() == shape[1 if columns else 0]
    if layer.kind == "ia3":
        yield t["weight"].numel() == shape[1 if "on_input" in t and bool(t["on_input"]) else 0]
    if layer.kind == "glora":
        yield t["a1"].shape[0] == shape[1]


def _shown(layer: Layer) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in layer.tensors.items())
