"""What an adapter says of one module, whatever file it came from: the one form between all dialects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["lora", "loha", "lokr", "oft", "boft", "oft_in", "glora", "ia3", "diff", "set"]


@dataclass(frozen=True)
class Layer:
    """One module's part of an adapter.

    part: component in `model_index.json` (unet, transformer, text_encoder ...). module: full name in diffusers' (or
    transformers') network. alpha: as stated; None where none was (the scale is then 1).

    tensors, by kind (all that a file gives, in the file's dtype):
    lora: down [r, in, ...], up [out, r, ...]; mid [r, r, kh, kw] (Tucker); magnitude [out] or [1, in, ...] (DoRA);
    bias [out].
    loha: w1_a w1_b w2_a w2_b, t1 t2. lokr: w1 or w1_a w1_b, w2 or w2_a w2_b, t2. Both: magnitude.
    lora, loha, lokr: base_magnitude [out], as ComfyUI takes a magnitude, see `_over_base`.
    oft: blocks [n, s, s], rescale [out, 1, ...]. boft: blocks [stages, n, s, s], rescale. Their alpha is the limit of
    the rotation per output channel, 0 for none.
    oft_in: rotations [n, b, b] of blocks of input channels (n = 1: the same for all), as peft's OFT has them.
    glora: a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in, ...], bm (Tucker).
    ia3: weight [out] or [in], and on_input (0 or 1); `biased` where it scales the base's bias too, as peft's does.
    diff: weight and bias, either may be missing (full difference, norms). set: the weight itself in its place.
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
        if "magnitude" in tensors:
            change = _decomposed(_needed(self, base), change, tensors["magnitude"])
        if "base_magnitude" in tensors:
            change = _over_base(_needed(self, base), change, tensors["base_magnitude"])
        return change if base is None else change.reshape(base.shape)

    def bias(self, base: Tensor | None = None) -> Tensor | None:
        """What it adds to the module's bias, float32.

        base: the bias itself, None without one; `ValueError` where it may be needed and is not given.
        """
        if "biased" in self.tensors:
            if base is None:
                raise ValueError(
                    f"{self.part}.{self.module} (peft's ia3) scales the base's bias too, which no other file can say; "
                    "bake it into a model with `tuner lora bake`"
                )
            return base.float() * self.tensors["weight"].float().to(base.device)
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
    """scale * up @ down (Hu et al. 2021)."""
    return layer.scale * product(t)


def _decomposed(base: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """The whole change where a weight is split into magnitude and direction (DoRA, Liu et al. 2024).

    Norms are taken over all axes but that of the magnitude: the output's, or the input's where it is [1, in, ...].
    LyCORIS adds the number format's epsilon to them, and peft does not: a row of zeros stays one.
    """
    axis = int(magnitude.ndim > 1 and magnitude.shape[:2] == (1, base.shape[1]))
    whole = base + change.reshape(base.shape)
    others = [i for i in range(base.ndim) if i != axis]
    shape = [-1 if i == axis else 1 for i in range(base.ndim)]
    norm = torch.linalg.vector_norm(whole, dim=others, keepdim=True) + torch.finfo(whole.dtype).eps
    return magnitude.reshape(shape) * (whole / norm) - base


def _over_base(base: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """As `_decomposed`, but each row is divided by the length that it has in the base alone: ComfyUI's `dora_scale`."""
    shape = [-1] + [1] * (base.ndim - 1)
    norm = base.flatten(1).norm(dim=1) + torch.finfo(base.dtype).eps
    return (magnitude.flatten() / norm).reshape(shape) * (base + change.reshape(base.shape)) - base


def by_itself(layer: Layer, weight: Tensor) -> Layer:
    """A layer with ComfyUI's lengths as everyone else has them: each row divided by its own length after the change."""
    if "base_magnitude" not in layer.tensors:
        return layer
    kept = {k: v for k, v in layer.tensors.items() if k != "base_magnitude"}
    base = weight.float()
    lengths = [w.flatten(1).norm(dim=1) for w in (base, base + replace(layer, tensors=kept).delta(base))]
    magnitude = layer.tensors["base_magnitude"].flatten().float().to(base.device) * lengths[1] / lengths[0]
    return replace(layer, tensors={**kept, "magnitude": magnitude})


def product(t: dict[str, Tensor]) -> Tensor:
    """up @ down through `mid` where there is one: [out, in, ...], without the scale."""
    down, up = t["down"], t["up"]
    if "mid" in t:
        return torch.einsum("o i ..., i p, q o -> q p ...", t["mid"], down.flatten(1), up.flatten(1))
    return (up.flatten(1) @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:])


def _loha(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """Product of two low-rank products, elementwise (Hyeon-Woo et al. 2021)."""
    if "t1" in t:
        tucker = "i j ..., j r, i p -> p r ..."
        first = torch.einsum(tucker, t["t1"], t["w1_b"], t["w1_a"])
        return layer.scale * first * torch.einsum(tucker, t["t2"], t["w2_b"], t["w2_a"])
    return layer.scale * (t["w1_a"] @ t["w1_b"]) * (t["w2_a"] @ t["w2_b"])


def _lokr(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """Kronecker product of two factors, each whole or of low rank (Yeh et al. 2023)."""
    first = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
    if "w2" in t:
        second = t["w2"]
    elif "t2" in t:
        second = torch.einsum("i j ..., j r, i p -> p r ...", t["t2"], t["w2_b"], t["w2_a"])
    else:
        second = (t["w2_a"] @ t["w2_b"].flatten(1)).reshape(t["w2_a"].shape[0], *t["w2_b"].shape[1:])
    first = first.reshape(*first.shape, *[1] * (second.ndim - first.ndim))
    return layer.scale * torch.kron(first, second.contiguous())


def _rotations(layer: Layer, blocks: Tensor) -> Tensor:
    """R = (I + Q)(I - Q)^-1 of each block, Q = B - B^T kept within the limit (Cayley; Qiu et al. 2023)."""
    blocks = blocks * _within(layer.alpha, blocks)
    skew = blocks - blocks.transpose(-1, -2)
    one = torch.eye(blocks.shape[-1], device=blocks.device)
    return (one + skew) @ torch.linalg.inv(one - skew)


def _within(alpha: float | None, blocks: Tensor) -> Tensor | float:
    """What the blocks are multiplied by to stay within the limit `alpha` per output channel; 1 without one."""
    norm, most = (blocks - blocks.transpose(-1, -2)).norm(), (alpha or 0.0) * blocks.shape[-3] * blocks.shape[-1]
    return most / norm if alpha and norm > most else 1.0


def unlimited(layer: Layer) -> Layer:
    """The same rotations (OFT, BOFT) without a limit: they are within it already."""
    blocks = layer.tensors["blocks"]
    within = _within(layer.alpha, blocks.float())
    return replace(layer, tensors={**layer.tensors, "blocks": blocks * within}, alpha=0.0)


def _oft(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """Blocks of output channels turned (Qiu et al. 2023), by the transpose of R as LyCORIS has it."""
    base = _needed(layer, weight)
    turned = _rotations(layer, t["blocks"]).transpose(1, 2) @ base.reshape(*t["blocks"].shape[:2], -1)
    return _rescaled(turned, t, base)


def _boft(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """Stages of such turns, stage i over channels that lie 2^i half blocks apart (Liu et al. 2024)."""
    base = _needed(layer, weight)
    rows, size = base.flatten(1), t["blocks"].shape[-1]
    for i, rotation in enumerate(_rotations(layer, t["blocks"])):
        apart = 2**i * (size // 2)
        gathered = rows.unflatten(0, (-1, 2, apart)).transpose(1, 2).reshape(-1, size, rows.shape[1])
        rows = (rotation @ gathered).reshape(-1, apart, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
    return _rescaled(rows, t, base)


def _oft_in(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """What comes in is turned block by block before the weight sees it: W R^T (Qiu et al. 2025)."""
    base = _needed(layer, weight)
    turns = t["rotations"].transpose(1, 2)
    rows = base.flatten(1).unflatten(1, (-1, turns.shape[-1]))
    turned = rows @ turns if len(turns) == 1 else torch.einsum("o n i, n i j -> o n j", rows, turns)
    return turned.reshape(base.shape) - base


def _rescaled(turned: Tensor, t: dict[str, Tensor], base: Tensor) -> Tensor:
    turned = turned.reshape(base.shape)
    if "rescale" in t:
        turned = turned * t["rescale"].reshape(-1, *[1] * (base.ndim - 1))
    return turned - base


def _glora(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """scale * (W A + B), A and B of low rank (Chavan et al. 2023); A mixes the input channels."""
    base = _needed(layer, weight)
    mixed = torch.einsum("o i ..., i r, r j -> o j ...", base, t["a1"].flatten(1), t["a2"].flatten(1))
    middle = {"mid": t["bm"]} if "bm" in t else {}
    return layer.scale * (mixed + product({"up": t["b1"], "down": t["b2"], **middle}).reshape(base.shape))


def _ia3(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """A factor 1 + w for each input or output channel (Liu et al. 2022)."""
    base = _needed(layer, weight)
    axis = 1 if "on_input" in t and bool(t["on_input"]) else 0
    return base * t["weight"].reshape([-1 if i == axis else 1 for i in range(base.ndim)])


def _set(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    base = _needed(layer, weight)
    return t["weight"].reshape(base.shape) - base


def _diff(layer: Layer, t: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    if "weight" in t:
        return t["weight"]
    return torch.zeros_like(_needed(layer, weight))


DELTAS: dict[str, Callable[[Layer, dict[str, Tensor], Tensor | None], Tensor]] = {
    "lora": _lora, "loha": _loha, "lokr": _lokr, "oft": _oft, "boft": _boft, "glora": _glora, "ia3": _ia3,
    "diff": _diff, "oft_in": _oft_in, "set": _set,
}  # fmt: skip
