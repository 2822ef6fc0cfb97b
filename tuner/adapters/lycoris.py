"""LyCORIS (Yeh et al. 2023) through lycoris-lora: other ways than LoRA to change a layer by few numbers."""

from __future__ import annotations

import fnmatch
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..adapter import Adapter, Named, on_cpu
from ..errors import UserError
from ..family import Family
from ..formats import file as opened
from ..formats.apply import plain_weight
from ..formats.file import STATED
from ..formats.layers import Layer, by_itself
from ..recipe import READ, LycorisKnobs, LycorisSpec, Recipe
from ..source import Source
from ..types import Parts
from . import _lycoris_start, start
from ._injected import stem
from .lora import layers_for

TREE = "lycoris_net"
"""Where the adapter stands in the denoiser's own tree: what moves, shards or lists the denoiser reaches it."""


class Lycoris(Named):
    """A LyCORIS adapter on a network. Its state is called `transformer.<module>.lokr_w1` and so on.

    changes: one `_lycoris.Change` per layer. At strength 0 and when disabled the layers answer as without it.
    """

    def __init__(self, spec: LycorisSpec, denoiser: nn.Module, part: str, changes: list[Any]) -> None:
        self.spec, self.denoiser, self.changes = spec, denoiser.requires_grad_(False), changes
        self.part = part
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

    def begin(self, spec: LycorisSpec, family: Family, source: Source) -> None:
        """Take the values of the adapter that the settings name; of a network of which it says nothing, none.

        Raises `UserError` when it does not fit.
        """
        assert spec.start is not None
        path = start.find(spec.start)
        if STATED in opened.header(path):
            self._continue(opened.read(path).tensors)
            return
        layers = {x.module: x for x in _lycoris_start.layers_of(spec, family, source) if x.part == self.part}
        if not layers:
            return
        self._fits({c.name for c in self.changes}, set(layers))
        with torch.no_grad():
            for change in self.changes:
                weight, own = plain_weight(change.base), dict(change.inner.named_parameters())
                assert weight is not None
                values = _lycoris_start.values(by_itself(layers[change.name], weight))
                # a bias that the file leaves as it is stays at zero
                self._fits({f"{change.name}.{n}" for n in own if n != "bias"},
                           {f"{change.name}.{n}" for n in values if n != "bias"})  # fmt: skip
                for name, value in values.items():
                    if value.numel() != own[name].numel():
                        raise UserError(
                            f"adapter.start does not fit this model: {change.name} ({name}) is {list(value.shape)} "
                            f"there and {list(own[name].shape)} here; take an adapter of this model."
                        )
                    own[name].copy_(value.reshape(own[name].shape))

    def _continue(self, state: dict[str, Tensor]) -> None:
        """Take a checkpoint's tensors. Files call text encoders' layers as published, whatever the library does."""
        ours = {_bare(name): name for name in self.names.values()}
        given = {ours.get(_bare(k), k): v for k, v in state.items() if k.startswith(f"{self.part}.")}
        if given:
            self._fits(set(self.names.values()), set(given))
            self.load_state_dict(given)

    def _fits(self, own: set[str], given: set[str]) -> None:
        if differ := sorted(own ^ given):
            more = "it has" if differ[0] in given else "it lacks"
            raise UserError(
                f"adapter.start does not fit the adapter: {more} {differ[0]} ({len(differ)} differ); leave all "
                "settings but dropouts out, to take those of the file."
            )

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

    def metadata(self) -> dict[str, str]:
        """The settings of the recipe, which say what each tensor is; module names stand in the keys."""
        return {"format": "pt", STATED: json.dumps(self.spec.model_dump(mode="json"))}

    def layers(self) -> list[Layer]:
        """What files say of the adapter: on the CPU, in float32."""
        return [_on_cpu(c.layer(self.part)) for c in self.changes]

    def loads_in(self) -> tuple[str, ...]:
        """Who reads the file in LyCORIS' keys as it was meant; diffusers reads LoRA only."""
        broken = any(
            c.knobs.algorithm == "ia3" or c.knobs.unbalanced or c.knobs.dora_on == "input" for c in self.changes
        )
        return () if broken else ("lycoris-lora",)


def _bare(name: str) -> str:
    return name.replace(f".{start.PREFIX}", ".", 1)


def _on_cpu(layer: Layer) -> Layer:
    return Layer(
        layer.part, layer.module, layer.kind, on_cpu({k: v.float() for k, v in layer.tensors.items()}), layer.alpha
    )


# -- settings ----------------------------------------------------------------------------------------------------------


def refuses(family: Family, recipe: Recipe) -> str | None:
    """See `adapters.refuses`."""
    spec: Any = recipe.adapter
    entries = {"adapter": spec, **{f"adapter.algorithms.{k}": v for k, v in spec.algorithms.items()}}
    if spec.text is not None:
        entries |= {f"adapter.text.algorithms.{k}": v for k, v in spec.text.algorithms.items()}
        for name in ("rank", "alpha"):
            if getattr(spec.text, name) and name not in spec.read():
                return f"adapter.text.{name} has no meaning for the algorithm {spec.algorithm}; remove it."
        if reason := _contradicts("adapter.text", spec.of_text()):
            return reason
    for where, knobs in entries.items():
        if reason := _idle(where, knobs) or _contradicts(where, knobs):
            return reason
        if recipe.memory.quantise != "none" and knobs.algorithm == "full":
            return (
                f"{where}.algorithm is full, which trains the difference of whole weights and gains nothing from "
                "memory.quantise; turn one of them off."
            )
        if recipe.memory.quantise == "fp8" and knobs.dora:
            return (
                f"{where}.dora measures the base's weights before memory.quantise=fp8 rounds them, so that training "
                "would not begin as the base; take another way to quantise, or turn dora off."
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
    return Lycoris(spec, network, stem(parts), changes)


def build_text(spec: LycorisSpec, chosen: dict[str, list[str]], parts: Parts) -> dict[str, Adapter]:
    """See `text.build`."""
    module, own = importlib.import_module("._lycoris", __package__), spec.of_text()
    names = [start.text_name(part, n) for part, layers in chosen.items() for n in layers]
    if unused := [p for p in own.algorithms if not any(fnmatch.fnmatchcase(n, p) for n in names)]:
        raise UserError(
            f"adapter.text.algorithms: {', '.join(unused)} fits none of the {len(names)} layers, such as {names[0]}; "
            "patterns are of full names, with * for any part."
        )
    found: dict[str, Adapter] = {}
    for part, layers in chosen.items():
        network = parts[part]
        changes = [module.Change(n, network.get_submodule(n), own.of(start.text_name(part, n))) for n in layers]
        found[part] = Lycoris(own, network, part, changes)
    return found


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
