"""The difference of two models as an adapter, layer by layer: neither model is ever in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..formats.layers import Layer
from ..source import Source
from .kept import Kept
from .lowrank import Cut, best, factors, plain, total
from .weights import Weights

DENOISERS = ("unet", "transformer", "transformer_2", "prior")
CLIPS = ("CLIPTextModel", "CLIPTextModelWithProjection")
IGNORED = {"_name_or_path", "_diffusers_version", "transformers_version", "dtype", "torch_dtype"}
"""What two configurations of one architecture may differ in."""


@dataclass(frozen=True)
class How:
    """cut: rank or energy of each layer. whole: norms, biases and whatever else differs become full differences; else
    they are counted in `left`. only: components; all that both models have by default. dtype: of what is made."""

    cut: Cut
    whole: bool = False
    only: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32


@dataclass
class Extracted:
    """What each layer kept, and what differs but has no place in a LoRA: (name, norm of its difference)."""

    found: dict[tuple[str, str], Layer] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    left: list[tuple[str, float]] = field(default_factory=list)

    @property
    def layers(self) -> list[Layer]:
        """One per module."""
        return list(self.found.values())

    @property
    def left_share(self) -> float:
        """The share of the whole difference (by norm) that was left out because no LoRA can hold it."""
        left = total(n for _, n in self.left)
        whole = total([left, *(k.size for k in self.kept)])
        return left / whole if whole else 0.0

    def add(self, layer: Layer) -> None:
        """A module's weight and bias are one layer, in whatever order they come."""
        place = (layer.part, layer.module)
        there = self.found.get(place)
        if there is not None:
            main = there if layer.kind == "diff" else layer
            layer = replace(main, tensors={**there.tensors, **layer.tensors})
        self.found[place] = layer


def parts(source: Source) -> tuple[str, ...]:
    """The components that adapters change: denoisers and CLIP text encoders."""
    clips = [p for p, entry in source.index.items() if isinstance(entry, list) and entry[-1] in CLIPS]
    return tuple(p for p in (*DENOISERS, *clips) if source.has(p))


def extract(
    tuned: Source, base: Source, how: How, say: Callable[[int, int], None] = lambda done, of: None
) -> Extracted:
    """tuned - base: linear layers and convolutions as LoRA layers by the best approximation there is.

    say: called with (tensors done, of all). Raises `UserError` unless both models are of one architecture.
    """
    found = Extracted()
    names = _parts(tuned, base, how.only)
    pairs = [(part, _pair(tuned, base, part)) for part in names]
    of, done = sum(len(a.entries) for _, (a, _) in pairs), 0
    for part, (new, old) in pairs:
        kinds = dict(base.outline(part).named_modules())
        for key in new.entries:
            done += 1
            say(done, of)
            difference = new.get(key).float() - old.get(key).float()
            if difference.any():
                _take(found, part, _named(key, kinds), difference, kinds, how)
    if not found.layers:
        raise UserError(
            f"{tuned.name} and {base.name} are equal in {', '.join(names)}"
            + (
                ": they differ in norms and biases alone; add --all."
                if found.left
                else "; there is nothing to extract."
            )
        )
    return found


def _parts(tuned: Source, base: Source, only: Sequence[str]) -> tuple[str, ...]:
    shared = tuple(p for p in parts(base) if p in parts(tuned))
    if unknown := [p for p in only if p not in shared]:
        raise UserError(f"--part is {unknown[0]}; these two models share {', '.join(shared) or 'no such component'}.")
    first, second = (", ".join(p for p in DENOISERS if s.has(p)) or "no denoiser" for s in (base, tuned))
    if not only and first != second:
        raise UserError(
            f"{base.name} has {first} and {tuned.name} has {second}; both must be models of one architecture."
        )
    return tuple(only) or shared


def _pair(tuned: Source, base: Source, part: str) -> tuple[Weights, Weights]:
    """Both components' weights. Raises `UserError` when they are not of one architecture."""
    a, b = tuned.config(part), base.config(part)
    unequal = sorted(k for k in a.keys() | b.keys() if k not in IGNORED and a.get(k) != b.get(k))
    classes = tuned.index[part][1], base.index[part][1]
    if classes[0] != classes[1]:
        raise UserError(f"{part} is a {classes[0]} in {tuned.name} and a {classes[1]} in {base.name}; no difference.")
    new, old = Weights(tuned.component(part)), Weights(base.component(part))
    for key in sorted(new.entries.keys() | old.entries.keys()):
        first, second = new.entries.get(key), old.entries.get(key)
        if first is None or second is None:
            lacks = tuned.name if first is None else base.name
            why = f"{lacks} lacks {key}"
        elif first.shape != second.shape:
            why = f"{key} is {list(first.shape)} in one and {list(second.shape)} in the other"
        else:
            continue
        settings = f" (settings that differ: {', '.join(unequal[:3])})" if unequal else ""
        raise UserError(f"{tuned.name} and {base.name} are not of one architecture: in {part}, {why}{settings}.")
    return new, old


def _named(key: str, kinds: dict[str, nn.Module]) -> tuple[str, str]:
    """(module, weight or bias ...) of a key in the files, by the network's own names."""
    module, _, name = key.rpartition(".")
    for candidate in (module, module.removeprefix("text_model."), f"text_model.{module}"):
        if candidate in kinds:
            return candidate, name
    return module, name


def _take(
    found: Extracted, part: str, named: tuple[str, str], difference: Tensor, kinds: dict[str, nn.Module], how: How
) -> None:
    """Put one tensor's difference where it belongs."""
    module, name = named
    kind, size = kinds.get(module), difference.double().norm().item()
    dense = isinstance(kind, nn.Linear) or (isinstance(kind, nn.Conv1d | nn.Conv2d | nn.Conv3d) and kind.groups == 1)
    if dense and name == "weight":
        layer = plain(part, module, best(difference.flatten(1), how.cut), tuple(difference.shape), how.dtype)
        pair = factors(layer)
        assert pair is not None
        missing = (difference.flatten(1).double() - pair[0] @ pair[1]).norm().item()
    elif how.whole and kind is not None and name in ("weight", "bias"):
        layer = Layer(part, module, "diff", {name: difference.to(how.dtype)})
        missing = (layer.tensors[name].double() - difference.double()).norm().item()
    else:
        found.left.append((f"{part}.{module}.{name}", size))
        return
    found.add(layer)
    found.kept.append(Kept(part, module, layer.rank, size, missing))
