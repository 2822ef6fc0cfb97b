"""LoRA (Hu et al. 2021) through peft, written in diffusers layout with rank and alpha in the metadata."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import peft
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..adapter import Written, on_cpu, take
from ..errors import UserError
from ..family import Family
from ..formats import live
from ..formats.layers import Layer
from ..recipe import LoraSpec, Recipe
from ..source import Source
from ..types import Parts

FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
METADATA = "lora_adapter_metadata"


class Lora:
    """A LoRA on the denoiser. Its state has the names of the exported file: `transformer.<layer>.lora_A.weight`."""

    def __init__(self, spec: LoraSpec, denoiser: nn.Module, part: str, layers: list[str]) -> None:
        alpha = spec.rank if spec.alpha is None else spec.alpha
        self.config = peft.LoraConfig(r=spec.rank, lora_alpha=alpha, lora_dropout=spec.dropout, target_modules=layers)
        self.denoiser: Any = denoiser.requires_grad_(False)
        # the second expert of a model is written under the first one's name: a loader is told which it is for
        self.part = part.removesuffix("_2")
        if hasattr(denoiser, "add_adapter"):
            self.denoiser.add_adapter(self.config)  # pyrefly: ignore[not-callable]
        else:  # networks of diffusers without its PeftAdapterMixin
            peft.inject_adapter_in_model(self.config, self.denoiser)
        self.modules = [m for m in denoiser.modules() if isinstance(m, LoraLayer)]
        if len(self.modules) != len(layers):
            raise AssertionError(f"peft attached to {len(self.modules)} layers, {len(layers)} were asked for")
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
        kept = [dict(layer.scaling) for layer in self.modules]
        for layer, scaling in zip(self.modules, kept, strict=True):
            layer.scaling = {k: v * strength for k, v in scaling.items()}
        try:
            yield
        finally:
            for layer, scaling in zip(self.modules, kept, strict=True):
                layer.scaling = scaling

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter.disabled`."""
        for layer in self.modules:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.modules:
                layer.enable_adapters(True)

    def state_dict(self) -> dict[str, Tensor]:
        """See `Adapter.state_dict`."""
        own = dict(self.denoiser.named_parameters())
        return on_cpu({stable: own[name] for name, stable in self.names.items()})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load_state_dict`."""
        back = {stable: name for name, stable in self.names.items()}
        take(self.denoiser, {back.get(k, k): v for k, v in state.items()}, set(self.names))

    def layers(self) -> list[Layer]:
        """See `Layered.layers`."""
        return list(live.from_peft(self.denoiser, self.part))

    def metadata(self) -> dict[str, str]:
        """What diffusers reads from the header: without it a file whose alpha is not its rank loads wrongly."""
        stated = json.dumps({f"{self.part}.{k}": v for k, v in self._plain().items()}, default=str)
        return {"format": "pt", METADATA: stated}

    def _plain(self) -> dict[str, Any]:
        return {k: sorted(v) if isinstance(v, set) else v for k, v in self.config.to_dict().items()}

    def export(self, folder: Path, source: Source, pipeline: Any) -> list[Written]:
        """Write `folder/diffusers/pytorch_lora_weights.safetensors`, open it again and compare.

        Through the pipeline's own writer where it has one. For pipelines without LoRA support the same file has the
        layers' names without a prefix, as the network's own `load_lora_adapter(folder, prefix=None)` reads them; for
        networks without that either, peft's `adapter_model.safetensors` stands with its `adapter_config.json`.
        """
        target, partial = folder / "diffusers", folder / ".partial-diffusers"
        shutil.rmtree(partial, ignore_errors=True)
        live = self.state_dict()
        layers = {k.removeprefix(f"{self.part}."): v for k, v in live.items()}
        kind = layout(pipeline, self.denoiser)
        if kind == "pipeline":
            name = self.part
            settings = {f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": self._plain()}
            pipeline.save_lora_weights(partial, **settings)
            wanted, file, stated = {f"{name}.{k}": v for k, v in layers.items()}, FILE, f"{name}.lora_alpha"
        else:
            partial.mkdir(parents=True)
            if kind == "network":
                wanted, file, stated = layers, FILE, "lora_alpha"
            else:
                wanted, file, stated = {f"base_model.model.{k}": v for k, v in layers.items()}, PEFT_FILE, "lora_alpha"
                text = json.dumps({**self._plain(), "base_model_name_or_path": None}, indent=2, default=str)
                (partial / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
            header = {"format": "pt", METADATA: json.dumps(self._plain(), default=str)}
            save_file(wanted, partial / file, header)
        with safe_open(partial / file, "pt") as written:
            same = set(written.keys()) == set(wanted) and all(written.get_tensor(k).equal(v) for k, v in wanted.items())
            said = json.loads((written.metadata() or {}).get(METADATA, "{}"))
        if not same or said.get(stated) != self.config.lora_alpha:
            raise AssertionError(f"{partial / file} differs from the trained adapter")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return [Written(target / file, "diffusers", ("diffusers",))]


def layout(pipeline: Any, denoiser: nn.Module) -> Literal["pipeline", "network", "peft"]:
    """Who reads an adapter file of this model: the pipeline, the network itself, or only peft."""
    if hasattr(pipeline, "save_lora_weights"):
        return "pipeline"
    return "network" if hasattr(denoiser, "load_lora_adapter") else "peft"


def attach(family: Family, parts: Parts, path: Path, strength: float) -> None:
    """Load an exported file or a checkpoint's adapter into the denoiser as any other program does, at a strength."""
    pipe, network = family.pipe(parts), parts.network
    kind = layout(pipe, network)
    if kind == "pipeline":
        pipe.load_lora_weights(
            str(path.parent), weight_name=path.name, adapter_name="contender", **family.lora_arguments
        )
    elif kind == "network":
        with safe_open(path, "pt") as file:  # a checkpoint's names begin with the part, an export's do not
            prefix = parts.denoiser if all(k.startswith(f"{parts.denoiser}.") for k in file.keys()) else None  # noqa: SIM118
        network.load_lora_adapter(  # pyrefly: ignore[not-callable]
            str(path.parent), prefix=prefix, weight_name=path.name, adapter_name="contender", use_safetensors=True
        )
    else:
        _inject(network, path, f"{parts.denoiser}.")
    layers = [m for m in network.modules() if isinstance(m, LoraLayer)]
    if not layers:
        raise ValueError("none of its layers is one of this network's")
    for layer in layers:
        layer.scaling = {k: v * strength for k, v in layer.scaling.items()}


def _inject(network: nn.Module, path: Path, part: str) -> None:
    """An exported file or a checkpoint's, by peft alone. Raises `ValueError` when a tensor finds no place."""
    with safe_open(path, "pt") as file:
        stated = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        state = {k.removeprefix("base_model.model.").removeprefix(part): file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    config = {k.removeprefix(part): v for k, v in stated.items()}
    known = {f.name for f in dataclasses.fields(peft.LoraConfig)}
    peft.inject_adapter_in_model(peft.LoraConfig(**{k: v for k, v in config.items() if k in known}), network)
    if unplaced := peft.set_peft_model_state_dict(network, state).unexpected_keys:
        raise ValueError(f"{len(unplaced)} tensors have no place, such as {unplaced[0]}")


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


def refuses(family: Family, recipe: Recipe) -> str | None:
    """See `adapters.refuses`."""
    return None
