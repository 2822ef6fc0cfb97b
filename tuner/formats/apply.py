"""An adapter file's layers put over a live network, quantised or not, and taken off again without a trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import libraries
from .layers import Layer


class Applied:
    """Layers over a network: each adds its part to what its module answers. `strength` may be changed at any time."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.handles: list[RemovableHandle] = []

    def remove(self) -> None:
        """Take the layers off."""
        for handle in self.handles:
            handle.remove()
        self.handles = []


def over(network: nn.Module, layers: Sequence[Layer], strength: float = 1.0) -> Applied:
    """Put `layers` (all of this network's part) over it. Raises `ValueError` for a module or shape that is not there.

    The base's weights are not touched, so that several may be put over each other and a quantised base stays as it is.
    Kinds that multiply the weight (DoRA, OFT, IA3) count from the base's weight, not from what lies below them.
    """
    applied = Applied(strength)
    try:
        for layer in layers:
            applied.handles.append(_one(network, layer, applied))
    except ValueError:
        applied.remove()
        raise
    return applied


def over_parts(networks: Mapping[str, nn.Module], layers: Sequence[Layer], strength: float = 1.0) -> list[Applied]:
    """Put `layers` of several networks over them, by their part. Raises `ValueError` as `over` does."""
    applied: list[Applied] = []
    try:
        for part in dict.fromkeys(layer.part for layer in layers):
            applied.append(over(networks[part], [layer for layer in layers if layer.part == part], strength))
    except ValueError:
        for one in applied:
            one.remove()
        raise
    return applied


def _one(network: nn.Module, layer: Layer, applied: Applied) -> RemovableHandle:
    try:
        module: Any = network.get_submodule(layer.module)
    except AttributeError:
        raise ValueError(f"it has {layer.module}, which this network lacks") from None
    module = getattr(module, "base_layer", module)  # a layer that peft wrapped
    weight = plain_weight(module)
    if weight is None:
        raise ValueError(f"it has {layer.module}, which has no weights in this network")
    if weight.ndim < 2:
        raise ValueError(f"it changes the norm {layer.module}, which only baking it into a model can do")
    change = layer.delta(weight)
    low = layer.kind == "lora" and not {"magnitude", "base_magnitude", "mid"} & set(layer.tensors) and weight.ndim == 2
    kept = _factors(layer, weight) if low else (change.to(weight.device),)
    own = getattr(module, "bias", None)
    bias = None if own is None and "biased" in layer.tensors else layer.bias(own)

    def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        if applied.strength == 0.0:
            return out
        x, given = args[0], [f.to(args[0].dtype) for f in kept]
        if isinstance(module, nn.Conv2d | nn.Conv1d | nn.Conv3d):
            more = _convolved(module, x, given[0])
        else:
            more = x
            for factor in given:
                more = nn.functional.linear(more, factor)
        if bias is not None:
            shape = [1, -1, *[1] * (out.ndim - 2)] if isinstance(module, nn.Conv2d | nn.Conv3d) else [-1]
            more = more + bias.to(more).reshape(shape)
        return out + applied.strength * more.to(out.dtype)

    return module.register_forward_hook(hook)


def _factors(layer: Layer, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(down, scaled up) of a plain LoRA on a linear layer: two small products instead of one large."""
    return layer.tensors["down"].float().to(weight.device), (layer.scale * layer.tensors["up"].float()).to(
        weight.device
    )


def _convolved(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    fn = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[weight.ndim - 2]
    return fn(x, weight, None, module.stride, module.padding, module.dilation, module.groups)


def plain_weight(module: Any) -> Tensor | None:
    """The module's weight as numbers, also of a quantised module; None for a module without one."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if (state := getattr(weight, "quant_state", None)) is not None:  # bitsandbytes: packed, two weights to a byte
        return libraries.bitsandbytes().functional.dequantize_4bit(weight.data, state)
    if weight.dtype is torch.int8 and hasattr(weight, "SCB"):
        scale = weight.SCB if weight.SCB is not None else module.state.SCB
        return weight.detach().float() * scale.float()[:, None] / 127
    if hasattr(weight, "dequantize") and type(weight) is not nn.Parameter and type(weight) is not Tensor:
        return weight.dequantize()  # pyrefly: ignore[missing-argument]
    return weight.detach() if weight.dtype in FLOATS else weight.detach().to(torch.float32)


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
