"""What an adapter says of one module, whatever file it came from: the one form between all dialects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["lora", "loha", "lokr", "oft", "boft", "glora", "ia3", "diff"]


@dataclass(frozen=True)
class Layer:
    """One module's part of an adapter.

    part: component in `model_index.json` (unet, transformer, text_encoder ...). module: full name in diffusers' (or
    transformers') network. alpha: as stated; None where none was (the scale is then 1).

    tensors, by kind (all that a file gives, in the file's dtype):
    lora: down [r, in, ...], up [out, r, ...]; mid [r, r, kh, kw] (Tucker); magnitude [out] or [1, in, ...] (DoRA);
    bias [out].
    loha: w1_a w1_b w2_a w2_b, t1 t2. lokr: w1 or w1_a w1_b, w2 or w2_a w2_b, t2.
    oft, boft: blocks, rescale. glora: a1 a2 b1 b2. ia3: weight, and on_input (0 or 1).
    diff: weight and bias, either may be missing (full difference, norms).
    """

    part: str
    module: str
    kind: Kind
    tensors: dict[str, Tensor]
    alpha: float | None = None

    @property
    def rank(self) -> int | None:
        """Its rank, None for kinds without one (a LoKr of two whole factors too)."""
        t = self.tensors
        for name, axis in (("down", 0), ("w1_b", 0), ("w2_b", 0), ("b2", 0)):
            if name in t:
                return int(t[name].shape[axis])
        return None

    @property
    def scale(self) -> float:
        """What its product is multiplied by: alpha / rank, 1 without either."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """What it adds to the module's weight, float32, in the weight's shape where `weight` is given.

        weight: the base's, which DoRA, OFT, GLoRA and IA3 depend on; `ValueError` where it is needed and missing.
        """
        tensors = {k: v.float() for k, v in self.tensors.items()}
        base = None if weight is None else weight.float()
        change = DELTAS[self.kind](self, tensors, base)
        return change if base is None else change.reshape(base.shape)

    def bias(self) -> Tensor | None:
        """What it adds to the module's bias, float32."""
        given = self.tensors.get("bias")
        if given is None:
            return None
        return given.float() * (self.scale if self.kind == "lora" else 1.0)


@dataclass
class Contents:
    """All layers of one file. leftover: keys that were not understood. dialect: how the file was written."""

    layers: list[Layer]
    metadata: dict[str, str] = field(default_factory=dict)
    leftover: list[str] = field(default_factory=list)
    dialect: str = ""


def _needed(layer: Layer, weight: Tensor | None) -> Tensor:
    if weight is None:
        raise ValueError(f"{layer.part}.{layer.module} ({layer.kind}) depends on the base's weight; give the model")
    return weight


def _lora(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """scale * up @ down (Hu et al. 2021), decomposed into magnitude and direction with DoRA (Liu et al. 2024)."""
    change = layer.scale * product(t)
    if "magnitude" not in t:
        return change
    base = _needed(layer, weight)
    whole = base + change.reshape(base.shape)
    magnitude = t["magnitude"]
    over_input = magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] == base.shape[1]
    axis = 1 if over_input and base.shape[0] != magnitude.numel() else 0
    others = [i for i in range(base.ndim) if i != axis]
    shape = [-1 if i == axis else 1 for i in range(base.ndim)]
    return magnitude.reshape(shape) * whole / whole.norm(dim=others, keepdim=True) - base


def product(t: dict[str, Tensor]) -> Tensor:
    """up @ down through `mid` where there is one: [out, in, ...], without the scale."""
    down, up = t["down"], t["up"]
    if "mid" in t:
        return torch.einsum("o i h w, i p, q o -> q p h w", t["mid"], down.flatten(1), up.flatten(1))
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _loha(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """Product of two low-rank products, elementwise (Hyeon-Woo et al. 2021)."""
    if "t1" in t:
        tucker = "i j k l, j r, i p -> p r k l"
        first = torch.einsum(tucker, t["t1"], t["w1_b"], t["w1_a"])
        return layer.scale * first * torch.einsum(tucker, t["t2"], t["w2_b"], t["w2_a"])
    return layer.scale * (t["w1_a"] @ t["w1_b"]) * (t["w2_a"] @ t["w2_b"])


def _lokr(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """Kronecker product of two factors, each whole or of low rank (Yeh et al. 2023)."""
    first = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
    if "w2" in t:
        second = t["w2"]
    elif "t2" in t:
        second = torch.einsum("i j k l, j r, i p -> p r k l", t["t2"], t["w2_b"], t["w2_a"])
    else:
        second = (t["w2_a"] @ t["w2_b"].flatten(1)).reshape(t["w2_a"].shape[0], *t["w2_b"].shape[1:])
    first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
    return layer.scale * torch.kron(first, second.contiguous())


def _diff(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    if "weight" in t:
        return t["weight"]
    return torch.zeros_like(_needed(layer, weight))


DELTAS: dict[str, Callable[[Layer, dict[str, Tensor], Tensor | None], Tensor]] = {
    "lora": _lora, "loha": _loha, "lokr": _lokr, "diff": _diff,
}  # fmt: skip
