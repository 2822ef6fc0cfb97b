"""One layer's LyCORIS change: the parameters are lycoris-lora's own modules, and so are most of the products.

What a layer answers is `base(x) + change(x)`. lycoris-lora would add the change to the weight and subtract the weight
again in the base's number format, where small changes of a bf16 base are rounded away; and its modules answer other
than they merge for rotations of a layer with a bias, at strengths beside 1, and for DyLoRA and IA3 (see the tests).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lycoris.functional import boft, diag_oft, locon
from lycoris.logging import logger
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.dylora import DyLoraModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UserError
from ..formats.apply import plain_weight
from ..formats.layers import Layer
from ..recipe import LycorisKnobs

logger.setLevel("ERROR")  # it writes its notes to the output, where a program that calls us reads JSON

CLASSES: dict[str, Any] = {
    "locon": LoConModule, "loha": LohaModule, "lokr": LokrModule, "dylora": DyLoraModule, "ia3": IA3Module,
    "diag_oft": DiagOFTModule, "boft": ButterflyOFTModule, "glora": GLoRAModule, "full": FullModule,
}  # fmt: skip
Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def large(base: nn.Module) -> bool:
    """Whether it is a convolution with a kernel beyond one pixel."""
    return isinstance(base, Conv) and any(k != 1 for k in base.kernel_size)


class Change(nn.Module):
    """What one algorithm adds to one layer's answer. Not a child of the layer: it stands in the adapter's own tree."""

    def __init__(self, name: str, base: nn.Module, knobs: LycorisKnobs) -> None:
        super().__init__()
        self.name, self.knobs = name, knobs
        self._base = [base]  # in a list, so that the layer does not become a part of this module
        self.conv = isinstance(base, Conv)
        _possible(name, base, knobs)
        rank, alpha = (knobs.conv_rank, knobs.conv_alpha) if large(base) else (knobs.rank, knobs.alpha)
        if knobs.algorithm == "dylora":
            # its scale is alpha / blocks in use; with this it is alpha / ranks in use, and alpha / rank when whole
            alpha = alpha / knobs.block_size  # pyrefly: ignore[unsupported-operation]
        self.inner: Any = CLASSES[knobs.algorithm](
            name, base, 1.0, rank or 1, alpha or 1.0,
            use_tucker=knobs.tucker, use_scalar=knobs.scalar, weight_decompose=knobs.dora,
            wd_on_out=knobs.dora_on != "input", decompose_both=knobs.decompose_both, factor=knobs.factor or -1,
            full_matrix=knobs.full_matrix, unbalanced_factorization=knobs.unbalanced, block_size=knobs.block_size or 1,
            rescaled=knobs.rescaled, constraint=knobs.constraint or 0, train_on_input=knobs.on_input,
        )  # fmt: skip
        self.inner.float()
        if knobs.algorithm == "diag_oft" and self.inner.block_size == 1 and not knobs.rescaled:
            raise UserError(
                f"adapter.rank is {rank}, which divides the {self.inner.dim} outputs of {name} into blocks of one "
                "channel, and those cannot turn; choose another rank, or leave that layer out with adapter.targets."
            )

    @property
    def base(self) -> Any:
        """The layer that is changed."""
        return self._base[0]

    @property
    def axes(self) -> int:
        """Of the layer's weight."""
        return self.base.weight.ndim if self.conv else 2

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """The change of the layer's answer `out` to `x`."""
        if self.training and self.knobs.module_dropout and float(torch.rand(1)) < self.knobs.module_dropout:
            return torch.zeros_like(out)
        change = ANSWERS[self.knobs.algorithm](self, x, out)
        if self.training and self.knobs.rank_dropout and self.knobs.algorithm != "locon":
            change = change * self.per_channel(self.kept(change.shape[1 if self.conv else -1]))
        return functional.dropout(change, self.knobs.dropout, self.training)

    def kept(self, count: int) -> Tensor:
        """1 for what stays, 0 for what rank dropout takes away [count]."""
        where = next(self.parameters())
        return (torch.rand(count, device=where.device) >= self.knobs.rank_dropout).to(where.dtype)

    def per_channel(self, values: Tensor) -> Tensor:
        """One value per channel in a shape that goes with the layer's answer."""
        return values.reshape(-1, *[1] * (self.axes - 2)) if self.conv else values.flatten()

    def unbiased(self, out: Tensor) -> Tensor:
        """An answer of the layer without its bias, which no algorithm turns or scales."""
        bias = self.base.bias
        return out if bias is None else out - self.per_channel(bias.to(out.dtype))

    def geometry(self) -> dict[str, Any]:
        """Stride and padding of a convolution; {} for a linear layer."""
        b = self.base
        return {"stride": b.stride, "padding": b.padding, "dilation": b.dilation} if self.conv else {}

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's own operation with another weight."""
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if self.conv:
            return self.base._conv_forward(x, weight, bias)
        return functional.linear(x, weight, bias)

    def chain(self, x: Tensor, down: Tensor, up: Tensor, mid: Tensor | None, scale: float | Tensor) -> Tensor:
        """scale * up(mid(down(x)))."""
        mid = None if mid is None else mid.to(x.dtype)
        return locon.bypass_forward_diff(
            x, None, down.to(x.dtype), up.to(x.dtype), mid, gamma=scale, extra_args=self.geometry()
        )

    def layer(self, part: str) -> Layer:
        """What a file says of it."""
        kind, tensors, alpha = TENSORS[self.knobs.algorithm](self.inner)
        return Layer(part, self.name, kind, {k: v.detach() for k, v in tensors.items()}, alpha)


def _possible(name: str, base: Any, knobs: LycorisKnobs) -> None:
    """Raise `UserError` for a layer that the algorithm cannot change."""
    grouped = isinstance(base, Conv) and base.groups != 1
    if grouped and (knobs.algorithm in ("glora", "dylora") or knobs.on_input):
        raise UserError(
            f"{name} is a convolution in groups, which adapter.algorithm={knobs.algorithm} cannot change; leave it out "
            "with adapter.targets, or give it another algorithm with adapter.algorithms."
        )
    if knobs.algorithm == "boft":
        _divides(
            name,
            base.out_channels if isinstance(base, Conv) else base.out_features,
            (knobs.conv_rank if large(base) else knobs.rank) or 1,
        )


def _divides(name: str, rows: int, rank: int) -> None:
    """BOFT takes an even block size that leaves a power of two blocks, at most the rank (Liu et al. 2024)."""
    fitting = [b for b in range(2, rows + 1, 2) if rows % b == 0 and (rows // b).bit_count() == 1]
    if not fitting or min(fitting) > rank:
        way = f"it takes a rank of {min(fitting)} or more" if fitting else "no rank can"
        raise UserError(
            f"adapter.rank is {rank}, with which BOFT cannot divide the {rows} outputs of {name}: {way}. Change it, or "
            "give that layer another algorithm with adapter.algorithms."
        )


# -- answers -----------------------------------------------------------------------------------------------------------


def _exact(fn: Callable[[Change, Tensor, Tensor], Tensor]) -> Callable[[Change, Tensor, Tensor], Tensor]:
    """Run in float32: what is built here is a small difference of large numbers, or an inverse."""

    def answer(change: Change, x: Tensor, out: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return fn(change, x, out)

    return answer


@_exact
def _difference(change: Change, x: Tensor, out: Tensor) -> Tensor:
    """The whole change of the weight, float32."""
    m = change.inner
    if change.knobs.algorithm == "locon":
        down, up, mid = _low(change)
        weight = locon.diff_weight(down, up, mid, gamma=m.scale).reshape(m.shape)
    else:
        weight = m.get_weight(m.shape) * m.scalar
    if not m.wd:
        return weight
    base = plain_weight(change.base)
    assert base is not None
    base = base.to(weight)
    return m.apply_weight_decompose(base + weight, 1) - base


def _rebuilt(change: Change, x: Tensor, out: Tensor) -> Tensor:
    return change.product(x, _difference(change, x, out))


def _locon(change: Change, x: Tensor, out: Tensor) -> Tensor:
    m, base = change.inner, change.base
    if m.wd or (change.conv and (base.groups != 1 or base.padding_mode != "zeros")):
        return _rebuilt(change, x, out)
    return change.chain(x, *_low(change), m.scale)


def _low(change: Change) -> tuple[Tensor, Tensor, Tensor | None]:
    """Down, up and mid; in training without the ranks that are dropped."""
    m = change.inner
    up = m.lora_up.weight * m.scalar
    if change.training and change.knobs.rank_dropout:
        up = up * change.kept(m.lora_dim).reshape(1, -1, *[1] * (up.ndim - 2))
    return m.lora_down.weight, up, m.lora_mid.weight if m.tucker else None


def _lokr(change: Change, x: Tensor, out: Tensor) -> Tensor:
    if change.inner.wd or change.conv:
        return _rebuilt(change, x, out)
    return change.inner.bypass_forward_diff(x)  # two small products; its dropouts are not used


def _dylora(change: Change, x: Tensor, out: Tensor) -> Tensor:
    """Whole when sampling; in training cut after a random block, of which only the last one learns."""
    m = change.inner
    # drawn with torch, which the run's seed and recomputed activations follow (Python's generator does neither)
    block = int(torch.randint(m.block_count, (1,))) if change.training else m.block_count - 1
    down, up, scale = m.get_weight(block * m.block_size)
    if change.conv:
        down, up = down.reshape(-1, *m.shape[1:]), up.reshape(*up.shape, *[1] * (len(m.shape) - 2))
    return change.chain(x, down, up, None, 1.0) * scale.to(x.dtype)


@_exact
def _diag_oft(change: Change, x: Tensor, out: Tensor) -> Tensor:
    m = change.inner
    rescale = m.rescale if m.rescaled else None
    return diag_oft.bypass_forward_diff(
        x, change.unbiased(out).float(), m.oft_blocks.float(), rescale, constraint=m.constraint,
        need_transpose=change.conv,
    ).to(out.dtype)  # fmt: skip


@_exact
def _boft(change: Change, x: Tensor, out: Tensor) -> Tensor:
    m = change.inner
    rescale = m.rescale if m.rescaled else None
    return boft.bypass_forward_diff(
        change.unbiased(out).float(), m.oft_blocks.float(), rescale, constraint=m.constraint,
        need_transpose=change.conv,
    ).to(out.dtype)  # fmt: skip


def _glora(change: Change, x: Tensor, out: Tensor) -> Tensor:
    m = change.inner
    a1, a2 = m.a1.weight.to(x.dtype), m.a2.weight.to(x.dtype)
    mixed = locon.bypass_forward_diff(x, None, a2, a1, None, gamma=1.0)
    # the bare forward: the hooks of the layer belong to its own answer
    through = change.unbiased(change.base.forward(mixed.to(x.dtype)))
    return (through + change.chain(x, m.b2.weight, m.b1.weight, None, 1.0)) * (m.scale * m.scalar.to(x.dtype))


def _ia3(change: Change, x: Tensor, out: Tensor) -> Tensor:
    factor = change.per_channel(change.inner.weight)
    if change.knobs.on_input:
        return change.unbiased(change.base.forward(x * factor.to(x.dtype)))
    return change.unbiased(out) * factor.to(out.dtype)


def _full(change: Change, x: Tensor, out: Tensor) -> Tensor:
    return change.product(x, change.inner.weight, change.inner.bias)


ANSWERS: dict[str, Callable[[Change, Tensor, Tensor], Tensor]] = {
    "locon": _locon, "loha": _rebuilt, "lokr": _lokr, "dylora": _dylora, "ia3": _ia3, "diag_oft": _diag_oft,
    "boft": _boft, "glora": _glora, "full": _full,
}  # fmt: skip


# -- files -------------------------------------------------------------------------------------------------------------

Told = tuple[Any, dict[str, Tensor], float | None]
"""Kind, tensors and alpha of a `Layer`; a trained `scalar` is multiplied into a factor."""


def _magnitude(m: Any) -> dict[str, Tensor]:
    if not m.wd:
        return {}
    return {"magnitude": m.dora_scale.flatten() if m.wd_on_out else m.dora_scale}


def _told_locon(m: Any) -> Told:
    mid = {"mid": m.lora_mid.weight} if m.tucker else {}
    factors = {"down": m.lora_down.weight, "up": m.lora_up.weight * m.scalar}
    return "lora", {**factors, **mid, **_magnitude(m)}, float(m.alpha)


def _told_dylora(m: Any) -> Told:
    """A plain LoRA of the whole rank."""
    down, up = torch.cat(list(m.down_list)), torch.cat(list(m.up_list), dim=1)
    down, up = down.reshape(-1, *m.shape[1:]), up.reshape(*up.shape, *[1] * (len(m.shape) - 2))
    return "lora", {"down": down, "up": up}, float(m.alpha) * m.block_size


def _told_loha(m: Any) -> Told:
    core = {"t1": m.hada_t1, "t2": m.hada_t2} if m.tucker else {}
    factors = {"w1_a": m.hada_w1_a * m.scalar, "w1_b": m.hada_w1_b, "w2_a": m.hada_w2_a, "w2_b": m.hada_w2_b}
    return "loha", {**factors, **core, **_magnitude(m)}, float(m.alpha)


def _told_lokr(m: Any) -> Told:
    first = {"w1": m.lokr_w1 * m.scalar} if m.use_w1 else {"w1_a": m.lokr_w1_a * m.scalar, "w1_b": m.lokr_w1_b}
    second = {"w2": m.lokr_w2} if m.use_w2 else {"w2_a": m.lokr_w2_a, "w2_b": m.lokr_w2_b}
    core = {"t2": m.lokr_t2} if m.tucker and not m.use_w2 else {}
    return "lokr", {**first, **second, **core, **_magnitude(m)}, float(m.alpha)


def _told_turned(m: Any) -> Told:
    rescale = {"rescale": m.rescale} if m.rescaled else {}
    kind = "boft" if isinstance(m, ButterflyOFTModule) else "oft"
    return kind, {"blocks": m.oft_blocks, **rescale}, float(m.alpha)


def _told_glora(m: Any) -> Told:
    a, b = {"a1": m.a1.weight, "a2": m.a2.weight * m.scalar}, {"b1": m.b1.weight, "b2": m.b2.weight * m.scalar}
    return "glora", {**a, **b}, float(m.alpha)


def _told_ia3(m: Any) -> Told:
    return "ia3", {"weight": m.weight, "on_input": m.on_input}, None


def _told_full(m: Any) -> Told:
    return "diff", {"weight": m.weight, **({} if m.bias is None else {"bias": m.bias})}, None


TENSORS: dict[str, Callable[[Any], Told]] = {
    "locon": _told_locon, "loha": _told_loha, "lokr": _told_lokr, "dylora": _told_dylora, "ia3": _told_ia3,
    "diag_oft": _told_turned, "boft": _told_turned, "glora": _told_glora, "full": _told_full,
}  # fmt: skip
