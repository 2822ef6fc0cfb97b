"""The layers of adapters that peft attached to a network, as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from .layers import Layer


def from_peft(network: nn.Module, part: str, adapter: str = "default") -> Iterator[Layer]:
    """Every LoRA (or DoRA) layer of `adapter` in the network. Tensors are on the CPU, detached, in float32."""
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            yield _layer(module, name, part, adapter)


def _layer(module: Any, name: str, part: str, adapter: str) -> Layer:
    tensors = {"down": _plain(module.lora_A[adapter].weight), "up": _plain(module.lora_B[adapter].weight)}
    if adapter in getattr(module, "lora_magnitude_vector", {}):
        # a convolution's stands as [1, out, 1, 1]: still one length for each row
        tensors["magnitude"] = _plain(module.lora_magnitude_vector[adapter].weight).flatten()
    if module.lora_B[adapter].bias is not None:
        tensors["bias"] = _plain(module.lora_B[adapter].bias)
    return Layer(part, name, "lora", tensors, float(module.scaling[adapter]) * tensors["down"].shape[0])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).float().contiguous()
