"""LoRA (Hu et al. 2021) through peft, written in diffusers layout with rank and alpha in the metadata.

With DoRA (Liu et al. 2024), rsLoRA (Kalajdzievski 2023), and the starts PiSSA (Meng et al. 2024) and OLoRA
(Büyükakyüz 2024). Those two begin with a part of the base's weight, which the base must then lack. Ours is never
touched: the first factors stand beside the trained ones as a second, frozen adapter of negative scale. So `disabled` is
the true base, and both adapters stacked are a plain LoRA of twice the rank, exactly.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import Tensor, nn

from ..adapter import Adapter, on_cpu
from ..errors import UserError
from ..family import Family
from ..formats import write
from ..formats.apply import plain_weight
from ..formats.file import METADATA
from ..formats.layers import Layer, by_itself
from ..recipe import LoraSpec, Recipe
from ..source import Source
from ..types import Parts
from . import start
from ._injected import Injected, blended, layers_for, stem

FIRST = "first"
"""Name in peft of the frozen adapter that holds the first factors."""
Shapes = dict[str, tuple[int, float]]
"""Layer → (rank, alpha); the scale is alpha / rank."""


class Lora(Injected):
    """A LoRA on a network. Its state has the names of the exported file: `transformer.<layer>.lora_A.weight`."""

    def __init__(self, spec: LoraSpec, network: nn.Module, part: str, shapes: Shapes) -> None:
        self.shapes = shapes
        self.doubled = spec.init in ("pissa", "olora")
        simple = {"gaussian": "gaussian"}.get(spec.init, True)
        own = {"lora_dropout": spec.dropout, "use_dora": spec.dora, "lora_bias": spec.bias, "init_lora_weights": simple}
        super().__init__(config(shapes, list(shapes), own), network, part, list(shapes))
        if spec.init in ("orthogonal", "pissa", "olora"):
            for name, module in self.modules.items():
                self._begin(name, module, spec)
        for module in self.modules.values():
            for p in _tensors(module).values():
                p.data = p.data.float()
        self._freeze()

    def _begin(self, name: str, module: Any, spec: LoraSpec) -> None:
        """Take the first factors from a stand-in with a copy of the weight, which peft may change as it likes."""
        rank, alpha = self.shapes[name]
        weight = plain_weight(module.base_layer)
        assert weight is not None
        if self.doubled and rank > min(weight.shape[0], weight[0].numel()):
            raise UserError(
                f"adapter.init is {spec.init}, but {name} is {weight.shape[0]} x {weight[0].numel()} and has no {rank} "
                "directions; lower adapter.rank, or give this layer its own in adapter.ranks."
            )
        copy = nn.Linear(weight[0].numel(), weight.shape[0], bias=False, device="meta")
        copy.weight = nn.Parameter(weight.float().flatten(1).clone(), requires_grad=False)
        how = f"pissa_niter_{spec.init_iterations}" if spec.init == "pissa" and spec.init_iterations else spec.init
        settings = peft.LoraConfig(init_lora_weights=how)
        stand_in = Linear(copy, "default", config=settings, r=rank, lora_alpha=alpha)
        if self.doubled:
            module.update_layer(FIRST, rank, lora_alpha=alpha, config=peft.LoraConfig())
            module.scaling[FIRST] = -module.scaling["default"]
            module.set_adapter(["default", FIRST])
        with torch.no_grad():
            for adapter in ("default", *([FIRST] if self.doubled else [])):
                for matrices in (module.lora_A, module.lora_B):
                    own = matrices[adapter].weight
                    given = stand_in.lora_A if matrices is module.lora_A else stand_in.lora_B
                    own.data = given["default"].weight.data.reshape(own.shape).to(own.device, copy=True)

    def _freeze(self) -> None:
        for module in self.modules.values() if self.doubled else ():
            for matrices in (module.lora_A, module.lora_B):
                matrices[FIRST].weight.requires_grad_(False)

    def _enable(self, on: bool) -> None:
        super()._enable(on)
        self._freeze()

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """See `Adapter.scaled`."""
        if self.config.use_dora:  # its scale is within a norm
            with super().scaled(strength):
                yield
            return
        kept = [(module, dict(module.scaling)) for module in self.modules.values()]
        for module, scaling in kept:
            module.scaling = {k: v * strength for k, v in scaling.items()}
        try:
            yield
        finally:
            for module, scaling in kept:
                module.scaling = scaling

    def layers(self) -> list[Layer]:
        """The adapter as it stands, in the form of all files; float32, on the CPU."""
        found = []
        for name, module in self.modules.items():
            t = on_cpu(_tensors(module))
            alpha = self.shapes[name][1]
            tensors = {"down": t["A"], "up": t["B"]}
            if self.doubled:
                tensors = {"down": torch.cat([t["A"], t["A0"]]), "up": torch.cat([t["B"], -t["B0"]], dim=1)}
                alpha *= 2
            if "magnitude" in t:
                tensors["magnitude"] = t["magnitude"].flatten()  # [out], also where peft has [1, out, 1, 1]
            if "bias" in t:
                tensors["bias"] = t["bias"]
            found.append(Layer(self.part, name, "lora", tensors, alpha))
        return found

    def begin(self, spec: LoraSpec, family: Family, source: Source) -> None:
        """Take the values of the adapter that the settings name; of a network of which it says nothing, none.

        Raises `UserError` for one of other layers, ranks or alphas.
        """
        assert spec.start is not None
        given = {x.module: x for x in start.lora_of(spec.start, family, source) if x.part == self.part}
        if not given:
            return
        if missing := sorted(set(self.modules) ^ set(given)):
            more = "it has" if missing[0] in given else "it lacks"
            raise UserError(
                f"adapter.start does not fit adapter.targets: {more} {missing[0]} ({len(missing)} layers differ); "
                "leave adapter.targets out to train the layers that it has."
            )
        names = {"A": "down", "B": "up", "magnitude": "magnitude", "bias": "bias"}
        with torch.no_grad():
            for name, module in self.modules.items():
                weight = plain_weight(module.base_layer)
                assert weight is not None
                given[name] = by_itself(given[name], weight)
                for ours, own in _tensors(module).items():
                    value = given[name].tensors.get(names[ours])
                    if value is None or value.numel() != own.numel():
                        shape = "missing" if value is None else list(value.shape)
                        raise UserError(
                            f"adapter.start does not fit this model: {name} ({names[ours]}) is {shape} there and "
                            f"{list(own.shape)} here; take an adapter of this model."
                        )
                    own.copy_(value.reshape(own.shape))

    def state_dict(self) -> dict[str, Tensor]:
        """See `Adapter.state_dict`. Where the first factors are kept, both adapters as one: it is a plain LoRA."""
        state = super().state_dict()
        if self.doubled:
            for layer in self.layers():
                stem = f"{self.part}.{layer.module}"
                state[f"{stem}.lora_A.weight"] = layer.tensors["down"]
                state[f"{stem}.lora_B.weight"] = layer.tensors["up"]
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load_state_dict`."""
        if not self.doubled:
            super().load_state_dict(state)
            return
        own = dict(state)
        for name, module in self.modules.items():
            a, b = (f"{self.part}.{name}.lora_{x}.weight" for x in "AB")
            if a in own and b in own:
                (own[a], first_a), (own[b], first_b) = own[a].chunk(2), own[b].chunk(2, dim=1)
                with torch.no_grad():
                    module.lora_A[FIRST].weight.copy_(first_a)
                    module.lora_B[FIRST].weight.copy_(-first_b)
        super().load_state_dict(own)

    def metadata(self) -> dict[str, str]:
        """What diffusers reads from the header: without it a file whose alpha is not its rank loads wrongly."""
        stated = json.dumps({f"{self.part}.{k}": v for k, v in self._plain().items()}, default=str)
        return {"format": "pt", METADATA: stated}

    def _plain(self) -> dict[str, Any]:
        """The configuration of the plain LoRA that the state is."""
        times = 2 if self.doubled else 1
        shapes = {name: (times * rank, times * alpha) for name, (rank, alpha) in self.shapes.items()}
        kept = {k: getattr(self.config, k) for k in ("lora_dropout", "use_dora", "lora_bias")}
        return plain(config(shapes, list(shapes), kept))


def attach(family: Family, parts: Parts, path: Path, strength: float) -> None:
    """Load an exported file or a checkpoint's adapter into the denoiser as any other program does, at a strength."""
    pipe, network = family.pipe(parts), parts.network
    kind = write.layout(pipe, network) if _is_lora(path) else "peft"
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
    if not weigh(network, strength):
        raise ValueError("none of its layers is one of this network's")


def weigh(network: nn.Module, strength: float) -> int:
    """Multiply the effect of what a loader has put on a network; returns the number of layers that it is on."""
    layers: list[Any] = [m for m in network.modules() if isinstance(m, BaseTunerLayer)]
    for layer in layers:
        if isinstance(layer, LoraLayer) and not layer.lora_magnitude_vector:
            layer.scaling = {k: v * strength for k, v in layer.scaling.items()}
        elif strength != 1.0:
            blended(layer, strength)
    return len(layers)


def _is_lora(path: Path) -> bool:
    with safe_open(path, "pt") as file:
        return not any(k.rpartition(".")[2] in ("ia3_l", "miss_block", "hra_u") for k in file.keys())  # noqa: SIM118


def _inject(network: nn.Module, path: Path, part: str) -> None:
    """An exported file or a checkpoint's, by peft alone. Raises `ValueError` when a tensor finds no place."""
    with safe_open(path, "pt") as file:
        stated = json.loads((file.metadata() or {}).get(METADATA, "{}"))
        state = {k.removeprefix("base_model.model.").removeprefix(part): file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    config = {k.removeprefix(part): v for k, v in stated.items()}
    cls = peft.PEFT_TYPE_TO_CONFIG_MAPPING[config.get("peft_type") or "LORA"]
    known = {f.name for f in dataclasses.fields(cls)} - {"peft_type"}
    peft.inject_adapter_in_model(cls(**{k: v for k, v in config.items() if k in known}), network)
    if unplaced := peft.set_peft_model_state_dict(network, state).unexpected_keys:
        raise ValueError(f"{len(unplaced)} tensors have no place, such as {unplaced[0]}")


def config(shapes: Shapes, layers: list[str], own: dict[str, Any]) -> peft.LoraConfig:
    """peft's configuration: the commonest rank and alpha, and by full name where a layer has others."""
    rank = Counter(r for r, _ in shapes.values()).most_common(1)[0][0]
    alpha = Counter(a for _, a in shapes.values()).most_common(1)[0][0]
    ranks = {name: r for name, (r, _) in shapes.items() if r != rank}
    alphas = {name: a for name, (_, a) in shapes.items() if a != alpha}
    given = {"r": rank, "lora_alpha": alpha, "rank_pattern": ranks, "alpha_pattern": alphas, "target_modules": layers}
    return peft.LoraConfig(**given, **own)


def plain(config: peft.PeftConfig) -> dict[str, Any]:
    """A configuration of peft as plain values."""
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}


def _tensors(module: Any) -> dict[str, Tensor]:
    """The parameters of one layer of peft; A0 and B0 are the frozen first factors."""
    found: dict[str, Tensor] = {"A": module.lora_A["default"].weight, "B": module.lora_B["default"].weight}
    if FIRST in module.lora_A:
        found |= {"A0": module.lora_A[FIRST].weight, "B0": module.lora_B[FIRST].weight}
    if "default" in module.lora_magnitude_vector:
        found["magnitude"] = module.lora_magnitude_vector["default"].weight
    if module.lora_B["default"].bias is not None:
        found["bias"] = module.lora_B["default"].bias
    return found


def build(spec: LoraSpec, family: Family, parts: Parts) -> Lora:
    """See `adapters.build`."""
    names = layers_for(spec.targets, family, parts.network)
    return _made(spec, parts.network, stem(parts), start.shapes(spec, names), "adapter")


def build_text(spec: LoraSpec, chosen: dict[str, list[str]], parts: Parts) -> dict[str, Adapter]:
    """See `text.build`."""
    own, found = spec.of_text(), {}
    shapes = start.shapes(own, [start.text_name(p, n) for p, names in chosen.items() for n in names], "adapter.text")
    for part, names in chosen.items():
        each = {n: shapes[start.text_name(part, n)] for n in names}
        found[part] = _made(own, parts[part], part, each, "adapter.text")
    return found


def _made(spec: LoraSpec, network: nn.Module, part: str, shapes: Shapes, where: str) -> Lora:
    if spec.bias and (without := [n for n in shapes if getattr(network.get_submodule(n), "bias", None) is None]):
        raise UserError(
            f"{where}.bias is true, but {len(without)} of the layers have none, such as {without[0]}, so that the "
            "result could not be merged; turn it off, or choose targets that have one."
        )
    return Lora(spec, network, part, shapes)


def refuses(family: Family, recipe: Recipe) -> str | None:
    """See `adapters.refuses`."""
    spec = recipe.adapter
    assert isinstance(spec, LoraSpec)
    own = [*_contradictions(spec), *(_contradictions(spec.of_text(), "adapter.text") if spec.text else ())]
    return next((sentence for holds, sentence in own if holds), start.wrong_patterns(spec))


def _contradictions(spec: LoraSpec, where: str = "adapter") -> list[tuple[bool, str]]:
    """(whether it holds, what to say of it)."""
    odd = [r for r in (spec.rank, *spec.ranks.values()) if r % 2]
    begins, moves = spec.start is not None, spec.init in ("pissa", "olora")
    return [
        (
            spec.bias and spec.dora,
            f"{where}.bias and {where}.dora exclude each other: DoRA has no bias of its own; turn one off.",
        ),
        (
            spec.bias and spec.init != "default",
            f"{where}.bias needs adapter.init=default, it is {spec.init}; change one.",
        ),
        (
            spec.dora and moves,
            f"{where}.dora needs a start that leaves the base as it is, but adapter.init is {spec.init}; take default, "
            "gaussian or orthogonal.",
        ),
        (
            spec.init == "orthogonal" and odd != [],
            f"adapter.init=orthogonal needs even ranks, {max(odd, default=0)} is odd; change it.",
        ),
        (
            spec.init_iterations > 0 and spec.init != "pissa",
            f"adapter.init_iterations belongs to adapter.init=pissa, it is {spec.init}; remove it.",
        ),
        (
            begins and spec.init != "default",
            f"adapter.start gives the first values, so adapter.init={spec.init} has no meaning; remove one.",
        ),
        (begins and spec.rslora, "adapter.start brings its own scale, so adapter.rslora has no meaning; remove it."),
    ]
