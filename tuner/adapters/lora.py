"""LoRA (Hu et al. 2021) through peft, written in diffusers layout with rank and alpha in the metadata."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor, nn

from ..adapter import on_cpu, take
from ..errors import UserError
from ..family import Family
from ..recipe import LoraSpec
from ..source import Source
from ..types import Parts

FILE = "pytorch_lora_weights.safetensors"


class Lora:
    """A LoRA on the denoiser. Its state has the names of the exported file: `transformer.<layer>.lora_A.weight`."""

    def __init__(self, spec: LoraSpec, denoiser: nn.Module, part: str, layers: list[str]) -> None:
        alpha = spec.rank if spec.alpha is None else spec.alpha
        self.config = peft.LoraConfig(r=spec.rank, lora_alpha=alpha, lora_dropout=spec.dropout, target_modules=layers)
        self.denoiser: Any = denoiser.requires_grad_(False)
        self.part = part
        self.denoiser.add_adapter(self.config)  # pyrefly: ignore[not-callable]
        self.layers = [m for m in denoiser.modules() if isinstance(m, LoraLayer)]
        if len(self.layers) != len(layers):
            raise AssertionError(f"peft attached to {len(self.layers)} layers, {len(layers)} were asked for")
        self.names = {n: self._stable(n) for n, p in denoiser.named_parameters() if p.requires_grad}
        for p in self.parameters():
            p.data = p.data.float()

    def _stable(self, name: str) -> str:
        return f"{self.part}.{name.replace('.default.', '.')}"

    def parameters(self) -> list[nn.Parameter]:
        """See `Adapter.parameters`."""
        own = dict(self.denoiser.named_parameters())
        return [own[n] for n in self.names]

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """See `Adapter.scaled`."""
        kept = [dict(layer.scaling) for layer in self.layers]
        for layer, scaling in zip(self.layers, kept, strict=True):
            layer.scaling = {k: v * strength for k, v in scaling.items()}
        try:
            yield
        finally:
            for layer, scaling in zip(self.layers, kept, strict=True):
                layer.scaling = scaling

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter.disabled`."""
        self.denoiser.disable_adapters()
        try:
            yield
        finally:
            self.denoiser.enable_adapters()

    def state_dict(self) -> dict[str, Tensor]:
        """See `Adapter.state_dict`."""
        own = dict(self.denoiser.named_parameters())
        return on_cpu({stable: own[name] for name, stable in self.names.items()})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load_state_dict`."""
        back = {stable: name for name, stable in self.names.items()}
        take(self.denoiser, {back.get(k, k): v for k, v in state.items()}, set(self.names))

    def metadata(self) -> dict[str, str]:
        """What diffusers reads from the header: without it a file whose alpha is not its rank loads wrongly."""
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in self.config.to_dict().items()}
        return {
            "format": "pt",
            "lora_adapter_metadata": json.dumps({f"{self.part}.{k}": v for k, v in plain.items()}, default=str),
        }

    def export(self, folder: Path, source: Source, pipeline: Any) -> Path:
        """Write `folder/diffusers/pytorch_lora_weights.safetensors` through diffusers, open it again and compare."""
        target, partial = folder / "diffusers", folder / ".partial-diffusers"
        shutil.rmtree(partial, ignore_errors=True)
        live = self.state_dict()
        layers = {k.removeprefix(f"{self.part}."): v for k, v in live.items()}
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in self.config.to_dict().items()}
        pipeline.save_lora_weights(
            partial, **{f"{self.part}_lora_layers": layers, f"{self.part}_lora_adapter_metadata": config}
        )
        with safe_open(partial / FILE, "pt") as file:
            same = set(file.keys()) == set(live) and all(file.get_tensor(k).equal(live[k]) for k in live)
            stated = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        if not same or stated.get(f"{self.part}.lora_alpha") != self.config.lora_alpha:
            raise AssertionError(f"{partial / FILE} differs from the trained adapter")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return target / FILE


def layers_for(targets: str | list[str], family: Family, denoiser: nn.Module) -> list[str]:
    """Full names of the layers that get an adapter. Raises `UserError` when the targets match none."""
    linear = [n for n, m in denoiser.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
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
    return found


def build(spec: LoraSpec, family: Family, parts: Parts) -> Lora:
    """See `adapters.build`."""
    return Lora(spec, parts.network, parts.denoiser, layers_for(spec.targets, family, parts.network))
