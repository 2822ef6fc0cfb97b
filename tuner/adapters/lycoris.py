"""LyCORIS (Yeh et al. 2023) through lycoris-lora: other ways than LoRA to change a layer by few numbers."""

from __future__ import annotations

import fnmatch
import importlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..adapter import Written, on_cpu, take
from ..errors import UserError
from ..family import Family
from ..formats.layers import Layer
from ..recipe import READ, LycorisKnobs, LycorisSpec, Recipe
from ..source import Source
from ..types import Parts
from .lora import FILE, METADATA, layers_for

TREE = "lycoris_net"
"""Where the adapter stands in the denoiser's own tree: what moves, shards or lists the denoiser reaches it."""
STATED = "tuner_lycoris"
"""The key of a checkpoint's header under which the settings of each module stand."""


class Lycoris:
    """A LyCORIS adapter on the denoiser. Its state is called `transformer.<module>.lokr_w1` and so on.

    changes: one `_lycoris.Change` per layer. At strength 0 and when disabled the layers answer as without it.
    """

    def __init__(self, spec: LycorisSpec, denoiser: nn.Module, part: str, changes: list[Any]) -> None:
        self.spec, self.denoiser, self.changes = spec, denoiser.requires_grad_(False), changes
        self.part = part.removesuffix("_2")
        self.strength = 1.0
        tree = nn.Module()
        for change in changes:
            tree.add_module(change.name.replace(".", "__"), change)
        denoiser.add_module(TREE, tree.train(denoiser.training))
        self.names = dict(self._names())
        self.handles = [self._hook(c) for c in changes]

    def _names(self) -> Iterator[tuple[str, str]]:
        """Name in the denoiser → stable name."""
        for change in self.changes:
            for name, _ in change.inner.named_parameters():
                own = {"weight": "diff", "bias": "diff_b"}.get(name, name) if change.knobs.algorithm == "full" else name
                yield f"{TREE}.{change.name.replace('.', '__')}.inner.{name}", f"{self.part}.{change.name}.{own}"

    def _hook(self, change: Any) -> RemovableHandle:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            if self.strength == 0.0:
                return out
            return out + (self.strength * change(args[0], out)).to(out.dtype)

        # first of all hooks: what rotates or scales an answer must see the layer's own
        return change.base.register_forward_hook(hook, prepend=True)

    def parameters(self) -> list[nn.Parameter]:
        """See `Adapter.parameters`."""
        own = dict(self.denoiser.named_parameters())
        return [own[n] for n in self.names]

    @contextmanager
    def scaled(self, strength: float) -> Iterator[None]:
        """See `Adapter.scaled`; the change of the weights is what is multiplied, for rotations too."""
        kept, self.strength = self.strength, self.strength * strength
        try:
            yield
        finally:
            self.strength = kept

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """See `Adapter.disabled`."""
        with self.scaled(0.0):
            yield

    def state_dict(self) -> dict[str, Tensor]:
        """See `Adapter.state_dict`."""
        own = dict(self.denoiser.named_parameters())
        return on_cpu({stable: own[name] for name, stable in self.names.items()})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load_state_dict`."""
        back = {stable: name for name, stable in self.names.items()}
        take(self.denoiser, {back.get(k, k): v for k, v in state.items()}, set(self.names))

    def metadata(self) -> dict[str, str]:
        """The settings of the recipe, which say what each tensor is; module names stand in the keys."""
        return {"format": "pt", STATED: json.dumps(self.spec.model_dump(mode="json"))}

    def layers(self) -> list[Layer]:
        """What files say of the adapter."""
        return [c.layer(self.part) for c in self.changes]

    def export(self, folder: Path, source: Source, pipeline: Any) -> list[Written]:
        """Write `folder/lycoris/adapter.safetensors`, open it again and compare.

        An adapter that is nothing but LoRA is also written as `folder/diffusers/pytorch_lora_weights.safetensors`.
        """
        layers = [_on_cpu(layer) for layer in self.layers()]
        wanted: dict[str, Tensor] = {}
        for layer, change in zip(layers, self.changes, strict=True):
            wanted |= keys(layer, change.axes)
        written = [_written(folder / "lycoris", "adapter.safetensors", "lycoris", wanted, {"format": "pt"})]
        written = [replace(w, loads_in=self.loads_in()) for w in written]
        plain = all(x.kind == "lora" and not {"mid", "magnitude"} & set(x.tensors) for x in layers)
        if plain and hasattr(pipeline, "save_lora_weights"):
            wanted, header = diffusers(layers, self.part)
            plain_file = _written(folder / "diffusers", FILE, "diffusers", wanted, header)
            written.insert(0, replace(plain_file, loads_in=("diffusers",)))
        return written

    def loads_in(self) -> tuple[str, ...]:
        """Who reads the file in LyCORIS' keys as it was meant; diffusers reads LoRA only."""
        broken = any(
            c.knobs.algorithm == "ia3" or c.knobs.unbalanced or c.knobs.dora_on == "input" for c in self.changes
        )
        return () if broken else ("lycoris-lora",)


def _on_cpu(layer: Layer) -> Layer:
    return Layer(layer.part, layer.module, layer.kind, on_cpu(layer.tensors), layer.alpha)


# -- files -------------------------------------------------------------------------------------------------------------

KEYS: dict[str, dict[str, str]] = {
    "lora": {"up": "lora_up.weight", "down": "lora_down.weight", "mid": "lora_mid.weight"},
    "loha": {k: f"hada_{k}" for k in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    "lokr": {k: f"lokr_{k}" for k in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "oft": {"blocks": "oft_blocks", "rescale": "rescale"},
    "boft": {"blocks": "oft_blocks", "rescale": "rescale"},
    "glora": {k: f"{k}.weight" for k in ("a1", "a2", "b1", "b2")},
    "ia3": {"weight": "weight", "on_input": "on_input"},
    "diff": {"weight": "diff", "bias": "diff_b"},
}
"""The names of a layer's tensors in lycoris-lora 4's files."""


def keys(layer: Layer, axes: int) -> dict[str, Tensor]:
    """One layer in LyCORIS' published keys. axes: of the layer's weight, which a magnitude per output follows."""
    name = f"lycoris_{layer.module.replace('.', '_')}"
    found = {f"{name}.{KEYS[layer.kind][k]}": v for k, v in layer.tensors.items() if k != "magnitude"}
    if (magnitude := layer.tensors.get("magnitude")) is not None:
        shape = [-1, *[1] * (axes - 1)] if magnitude.ndim == 1 else list(magnitude.shape)
        found[f"{name}.dora_scale"] = magnitude.reshape(shape)
    if layer.alpha is not None:
        found[f"{name}.alpha"] = torch.tensor(layer.alpha)
    return found


def diffusers(layers: list[Layer], part: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, header) of plain LoRA layers in diffusers' names; rank and alpha of each layer stand in the header."""
    tensors = {f"{part}.{x.module}.lora_A.weight": x.tensors["down"] for x in layers}
    tensors |= {f"{part}.{x.module}.lora_B.weight": x.tensors["up"] for x in layers}
    ranks, alphas = {x.module: x.rank for x in layers}, {x.module: x.alpha for x in layers}
    first = layers[0]
    config = {
        "r": first.rank, "lora_alpha": first.alpha, "rank_pattern": ranks, "alpha_pattern": alphas,
        "target_modules": sorted(ranks), "lora_bias": False, "use_dora": False,
    }  # fmt: skip
    return tensors, {"format": "pt", METADATA: json.dumps({f"{part}.{k}": v for k, v in config.items()})}


def _written(target: Path, file: str, form: str, wanted: dict[str, Tensor], header: dict[str, str]) -> Written:
    """A folder with one file, whole or not at all, opened again and compared."""
    partial = target.with_name(f".partial-{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(wanted, partial / file, header)
    with safe_open(partial / file, "pt") as opened:
        same = set(opened.keys()) == set(wanted) and all(opened.get_tensor(k).equal(v) for k, v in wanted.items())
    if not same:
        raise AssertionError(f"{partial / file} differs from the trained adapter")
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return Written(target / file, form)


# -- settings ----------------------------------------------------------------------------------------------------------


def refuses(family: Family, recipe: Recipe) -> str | None:
    """See `adapters.refuses`."""
    spec: Any = recipe.adapter
    entries = {"adapter": spec, **{f"adapter.algorithms.{k}": v for k, v in spec.algorithms.items()}}
    for where, knobs in entries.items():
        if reason := _idle(where, knobs) or _contradicts(where, knobs):
            return reason
        if getattr(recipe.memory, "quantise", None) and knobs.algorithm == "full":
            return (
                f"{where}.algorithm is full, which trains the difference of whole weights and gains nothing from "
                "memory.quantise; turn one of them off."
            )
    return None


def _idle(where: str, knobs: LycorisKnobs) -> str | None:
    """A setting that this algorithm does not read."""
    for name, field in LycorisKnobs.model_fields.items():
        value = getattr(knobs, name)
        if value == field.default or name in knobs.read():
            continue
        if knobs.algorithm == "lokr" and name in READ["lokr"]:
            return f"{where}.{name} has no meaning with full_matrix, which keeps the factors whole; remove one of them."
        having = ", ".join(a for a, read in READ.items() if name in read)
        return f"{where}.{name} has no meaning for the algorithm {knobs.algorithm}, only for {having}; remove it."
    return None


def _contradicts(where: str, knobs: LycorisKnobs) -> str | None:
    whole = knobs.filled()
    if knobs.dora_on and not knobs.dora:
        return f"{where}.dora_on is {knobs.dora_on}, but dora is off; set {where}.dora=true, or remove dora_on."
    for name in ("rank", "conv_rank"):
        rank = getattr(whole, name)
        if knobs.algorithm == "dylora" and rank % whole.block_size:
            return (
                f"{where}.{name} is {rank}, which is no multiple of block_size {whole.block_size}; change one of them."
            )
        if knobs.algorithm in ("diag_oft", "boft") and rank < 2:
            return f"{where}.{name} is {rank}, but {knobs.algorithm} turns blocks of two channels or more; raise it."
    return None


def build(spec: LycorisSpec, family: Family, parts: Parts) -> Lycoris:
    """See `adapters.build`."""
    module = importlib.import_module("._lycoris", __package__)
    spec, network = spec.filled(), parts.network
    names = layers_for(spec.targets, family, network)
    if unused := [p for p in spec.algorithms if not any(fnmatch.fnmatchcase(n, p) for n in names)]:
        raise UserError(
            f"adapter.algorithms: {', '.join(unused)} fits none of the {len(names)} layers, such as {names[0]}; "
            "patterns are of full names, with * for any part."
        )
    bases = {n: network.get_submodule(n) for n in names}
    if not any(module.large(m) for m in bases.values()):
        _refuse_for_convolutions(spec)
    changes = [module.Change(n, m, spec.of(n)) for n, m in bases.items()]
    return Lycoris(spec, network, parts.denoiser, changes)


def _refuse_for_convolutions(spec: LycorisSpec) -> None:
    """Raise `UserError` for what only convolutions read, where none is among the layers."""
    for knobs in (spec, *spec.algorithms.values()):
        idle = [n for n, own in (("conv_rank", "rank"), ("conv_alpha", "alpha"))
                if getattr(knobs, n) != getattr(knobs, own) and n in knobs.read()]  # fmt: skip
        if idle := idle + ["tucker"] * knobs.tucker:
            raise UserError(
                f"adapter.{idle[0]} acts on convolutions larger than 1x1, and adapter.targets {spec.targets!r} reaches "
                "none; choose targets with them (with-conv where the family has it), or remove it."
            )
