"""What all kinds of peft have in common: layers wrapped in place, their tensors by stable names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..adapter import Named
from ..errors import UserError
from ..family import Family
from ..types import Parts


class Injected(Named):
    """An adapter that peft injected into a network: the denoiser, or a text encoder (`part` says which).

    modules: full name in the network without the adapter → peft's layer. names: parameter in the network → its name in
    files, `transformer.<layer>.lora_A.weight`.
    """

    def __init__(self, config: peft.PeftConfig, denoiser: nn.Module, part: str, layers: list[str]) -> None:
        self.config = config
        self.denoiser: Any = denoiser.requires_grad_(False)
        self.part = part
        if hasattr(denoiser, "load_lora_adapter"):
            self.denoiser.add_adapter(self.config)  # pyrefly: ignore[not-callable]
        else:  # text encoders, and networks of diffusers without its PeftAdapterMixin
            peft.inject_adapter_in_model(self.config, self.denoiser)
        self.modules: dict[str, Any] = {n: m for n, m in denoiser.named_modules() if isinstance(m, BaseTunerLayer)}
        if set(self.modules) != set(layers):
            raise AssertionError(f"peft attached to {len(self.modules)} layers, {len(layers)} were asked for")
        self.names = {n: self._stable(n) for n, p in denoiser.named_parameters() if p.requires_grad}
        for p in self.parameters():
            p.data = p.data.float()

    def _stable(self, name: str) -> str:
        plain = re.sub(r"\.default(?=\.|$)", "", name)
        return f"{self.part}.{plain.replace('.lora_magnitude_vector.weight', '.lora_magnitude_vector')}"

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """See `Adapter.scaled`. The layers answer base + strength * (whole - base)."""
        with ExitStack() as stack:
            for module in self.modules.values():
                stack.callback(blended(module, strength).remove)
            yield

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter.disabled`."""
        self._enable(False)
        try:
            yield
        finally:
            self._enable(True)

    def _enable(self, on: bool) -> None:
        for module in self.modules.values():
            module.enable_adapters(on)


def stem(parts: Parts) -> str:
    """What names of the denoiser begin with. The second expert of a model is written under the first one's name: a
    loader is told which it is for."""
    return parts.denoiser.removesuffix("_2")


def blended(module: Any, strength: float) -> Any:
    """A hook on one layer of peft, by which it answers base + strength * (whole - base); returns its handle."""

    def blend(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> Tensor:
        base = layer.base_layer(*args, **kwargs)
        return base + strength * (out - base)

    return module.register_forward_hook(blend, with_kwargs=True)


def layers_for(targets: str | list[str], family: Family, denoiser: nn.Module) -> list[str]:
    """Full names of the layers that get an adapter. Raises `UserError` when the targets match none."""
    linear = {n: m for n, m in denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    if isinstance(targets, str):
        if targets not in family.targets:
            known = ", ".join(family.targets)
            raise UserError(
                f"adapter.targets is {targets!r}; {family.name} has the presets {known}; or give a list of layers."
            )
        found = [n for n in linear if re.fullmatch(family.targets[targets], n)]
    else:
        found = [n for n in linear if any(n == t or n.endswith(f".{t}") for t in targets)]
        unused = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in linear)]
        if unused:
            endings = sorted({re.sub(r"^.*?\.\d+\.", "", n) for n in linear})
            raise UserError(
                f"adapter.targets: {', '.join(unused)} matches no layer; layers end in {', '.join(endings[:40])}."
            )
    if not found:
        raise UserError(f"adapter.targets {targets!r} matches no layer of this model; choose another preset.")
    if grouped := [n for n in found if getattr(linear[n], "groups", 1) > 1]:
        raise UserError(
            f"adapter.targets: {grouped[0]} is a convolution in groups, whose change no adapter file can hold; leave "
            f"out {len(grouped)} such layers."
        )
    return found
