"""Adapters added into a model folder: the same model, changed for good, loadable where no adapter is.

Every adapter's change counts from the model's own weights, as it does when they are loaded beside each other: the order
of several does not matter.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..formats.layers import Layer
from ..source import Source
from . import place
from .lowrank import total
from .merge import change
from .weights import Entry, Weights, shards, stream

Say = Callable[[int, int], None]
"""(tensors done, of all)."""


@dataclass
class Baked:
    """What was changed in one component.

    tensors: how many. norm: of all changes together, and of what rounding to the stored numbers took from them.
    """

    tensors: int = 0
    norms: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As plain values; `rounding` is the lost share of the change."""
        size = total(self.norms)
        return {"tensors": self.tensors, "norm": size, "rounding": total(self.lost) / size if size else 0.0}


def bake(
    adapters: Sequence[tuple[Sequence[Layer], float]],
    source: Source,
    out: Path,
    dtype: torch.dtype | None = None,
    say: Say = lambda done, of: None,
) -> dict[str, Baked]:
    """Write the folder `out`: `source` with the adapters (layers, strength) added to its components.

    The sum is made in float32 and stored in the model's own numbers, or in `dtype`. Components without a change are
    taken as they are, their weights as hard links where the disk allows it. Returns the changed parts.
    """
    folder = source.whole()
    parts = list(dict.fromkeys(layer.part for layers, _ in adapters for layer in layers))
    weights = {part: _weights(source, part) for part in parts}
    wanted = {part: _wanted(adapters, part, weights[part]) for part in parts}
    needed = sum(_size(w, dtype) for w in weights.values())
    if folder.resolve() == out.resolve() or folder.resolve() in out.resolve().parents:
        raise UserError(f"{out} lies in the model {folder} itself, which is never changed; choose another place.")
    with place.new(out, needed) as partial:
        shutil.copytree(folder, partial, copy_function=_same, ignore=_ignored(folder, weights))
        done = {}
        for part in parts:
            done[part] = _component(weights[part], wanted[part], partial / part, dtype, say)
            if dtype is not None:
                _note_dtype(partial / part / "config.json", dtype)
    return done


def _weights(source: Source, part: str) -> Weights:
    folder = source.component(part)
    if "quantization_config" in source.config(part):
        raise UserError(
            f"source {source.name}: {part} is stored quantised, which nothing can be added to; take the model as it "
            "was before quantisation."
        )
    return Weights(folder)


Changes = dict[str, list[tuple[Layer, float, bool]]]
"""Key in the files → (layer, strength, whether it is the layer's bias that is added)."""


def _wanted(adapters: Sequence[tuple[Sequence[Layer], float]], part: str, weights: Weights) -> Changes:
    found: Changes = {}
    for layers, strength in adapters:
        for layer in (one for one in layers if one.part == part):
            names = []
            if layer.kind != "diff" or "weight" in layer.tensors:
                names.append(("weight", False))
            scales = "biased" in layer.tensors and weights.key(f"{layer.module}.bias") is not None
            if "bias" in layer.tensors or scales:
                names.append(("bias", True))
            for name, is_bias in names:
                key = weights.key(f"{layer.module}.{name}")
                if key is None:
                    raise UserError(
                        f"The adapter changes {part}.{layer.module}.{name}, which {weights.folder} does not have; "
                        "it was made for another model."
                    )
                found.setdefault(key, []).append((layer, strength, is_bias))
    return found


def _size(weights: Weights, dtype: torch.dtype | None) -> int:
    return sum(_stored(e, dtype).nbytes for e in weights.entries.values())


def _stored(entry: Entry, dtype: torch.dtype | None) -> Entry:
    number = dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype
    return Entry(entry.file, entry.shape, number)


def _ignored(folder: Path, weights: dict[str, Weights]) -> Callable[[str, list[str]], list[str]]:
    """Leaves out the changed components' weights, in all their copies, and hidden files."""
    names = {part: {f.name for f in w.files} for part, w in weights.items()}

    def ignored(where: str, entries: list[str]) -> list[str]:
        path = Path(where)
        changed = names.get(path.name, set()) if path.parent == folder else set()
        # copies of the old weights in other numbers, and pickles of them, would be the old model
        old = {e for e in entries if changed and e.endswith((".safetensors", ".bin", ".pt", ".ckpt", ".msgpack"))}
        hidden = {e for e in entries if path == folder and e.startswith(".")}
        return sorted(changed | old | hidden)

    return ignored


def _same(source: str, target: str) -> None:
    """A weights file as a hard link, which costs no space; whatever a person might edit as a copy."""
    if source.endswith(".safetensors"):
        try:
            os.link(os.path.realpath(source), target)
            return
        except OSError:  # another disk, or one that knows no links
            pass
    shutil.copy2(source, target)


def _component(weights: Weights, wanted: Changes, folder: Path, dtype: torch.dtype | None, say: Say) -> Baked:
    baked = Baked()
    of, seen = len(weights.entries), 0
    for file, entries in shards(weights):

        def get(key: str) -> Tensor:
            nonlocal seen
            seen += 1
            say(seen, of)
            entry = _stored(weights.entries[key], dtype)
            if key in wanted:
                return _changed(weights.get(key), wanted[key], entry.dtype, baked)
            return weights.get(key).to(entry.dtype)

        stream(folder / file.name, {k: _stored(e, dtype) for k, e in entries.items()}, {"format": "pt"}, get)
    _resized(folder, {k: _stored(e, dtype) for k, e in weights.entries.items()})
    if baked.tensors != len(wanted):
        raise AssertionError(f"{baked.tensors} tensors were changed in {folder}, {len(wanted)} should have been")
    return baked


def _changed(weight: Tensor, wanted: list[tuple[Layer, float, bool]], dtype: torch.dtype, baked: Baked) -> Tensor:
    base = weight.float()
    sum_ = torch.zeros_like(base)
    for layer, strength, is_bias in wanted:
        one = layer.bias(base) if is_bias else change(layer, lambda _: base)
        if one is None or one.shape != base.shape:
            has = None if one is None else list(one.shape)
            raise UserError(
                f"{layer.part}.{layer.module}: the adapter's change has the shape {has}, the model's weight "
                f"{list(base.shape)}; it was made for another model."
            )
        sum_ += strength * one
    new = (base + sum_).to(dtype)
    baked.tensors += 1
    baked.norms.append(sum_.norm().item())
    baked.lost.append((new.float() - weight.to(dtype).float() - sum_).norm().item())
    return new


def _resized(folder: Path, entries: dict[str, Entry]) -> None:
    """State the new size in the shards' index, if there is one."""
    for index in folder.glob("*.safetensors.index.json"):
        settings = json.loads(index.read_text(encoding="utf-8"))
        settings.setdefault("metadata", {})["total_size"] = sum(e.nbytes for e in entries.values())
        index.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _note_dtype(config: Path, dtype: torch.dtype) -> None:
    """transformers loads a network in the numbers that its configuration names."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    for key in {"dtype", "torch_dtype"} & set(settings):
        settings[key] = str(dtype).removeprefix("torch.")
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
