"""What is in an adapter file: kinds, ranks, strength by block, spectrum, and what is wrong or private in it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..formats import dialects
from ..formats import file as opened
from ..formats.layers import Contents, Layer
from .lowrank import singular, total
from .merge import Base, no_model
from .metadata import leaks
from .model import Model, fits

BLOCK = re.compile(r"^(.*?(?:^|[._])\d+)(?:[._]|$)")
PARTS = re.compile(r"(transformer(?:_2)?|unet|prior|text_encoder(?:_\d)?)\.")
BEGINNINGS = {
    "lora_unet_": "kohya", "lora_te": "kohya", "lora_transformer_": "kohya", "lora_prior_": "kohya",
    "diffusion_model.": "comfyui", "model.diffusion_model.": "comfyui", "text_encoders.": "comfyui",
    "lycoris_": "lycoris", "base_model.model.": "peft",
}  # fmt: skip
POWERS = tuple(2**i for i in range(11))


@dataclass(frozen=True)
class Measured:
    """One layer: norm of its change, None where that needs the base's weight. values: singular values, falling."""

    layer: Layer
    norm: float | None
    values: Tensor | None

    @property
    def zero(self) -> bool:
        """Whether it changes nothing: one of its factors was never moved away from zero."""
        return self.norm == 0.0


def measure(layer: Layer, base: Base = no_model) -> Measured:
    """Norm and spectrum by the layer's factors; kinds that depend on the base only with it."""
    try:
        weight = base(layer)
        if layer.kind == "diff" and ("weight" not in layer.tensors or layer.tensors["weight"].ndim < 2):
            moved = total(t.double().norm().item() for t in layer.tensors.values())
            return Measured(layer, moved, None)
        values = singular(layer, weight)
    except ValueError:
        return Measured(layer, None, None)
    return Measured(layer, values.norm().item(), values)


def effective_rank(values: Tensor) -> float:
    """How many directions really carry the change: exp of the entropy of the singular values' shares (Roy and Vetterli
    2007); between 1 and their number, 0 for a change of nothing."""
    if not values.any():
        return 0.0
    shares = values[values > 0] / values.sum()
    return torch.exp(-(shares * shares.log()).sum()).item()


def spectrum(measured: Sequence[Measured]) -> dict[str, Any]:
    """share: rank → share of the energy of all layers that their best approximations of that rank would hold."""
    found = [m.values for m in measured if m.values is not None and m.values.any()]
    if not found:
        return {"layers": 0, "share": {}, "effective_rank": None}
    energy = sum(v.square().sum().item() for v in found)
    longest = max(int((v > v[0] * 1e-7).sum()) for v in found)
    powers = [p for p in POWERS if p < longest] + [longest]
    share = {str(p): sum(v[:p].square().sum().item() for v in found) / energy for p in powers}
    ranks = [effective_rank(v) for v in found]
    told = {"mean": sum(ranks) / len(ranks), "lowest": min(ranks), "highest": max(ranks)}
    return {"layers": len(found), "share": share, "effective_rank": told}


def alone(file: opened.File) -> Contents:
    """What can be said of a file without a model: layers under the names that the file has for them."""
    entries, leftover = dialects.grouped(file.tensors)
    stated = opened.settings(file)
    contents, written = Contents([], file.metadata, leftover), Counter[str]()
    for name, entry in entries.items():
        found = list(dialects.layers_of(name, entry, file.path, stated))
        if not found:
            contents.leftover += [k for keys in entry.keys.values() for k in keys]
            continue
        part, module = _split(name)
        written[next((d for b, d in BEGINNINGS.items() if name.startswith(b)), "diffusers")] += 1
        for layer in found:
            alpha = layer.alpha
            if alpha is None:
                alpha = dialects.alpha_of(stated, part, module, layer.rank)
            contents.layers.append(replace(layer, part=part, module=module, alpha=alpha))
    contents.dialect = written.most_common(1)[0][0] if written else ""
    return contents


def _split(name: str) -> tuple[str, str]:
    """(part, module) of a name as a file has it; the part is what stands before it, "" where nothing does."""
    bare = name.removeprefix("base_model.model.")
    if match := PARTS.match(bare):
        return match.group(1), bare[match.end() :]
    for beginning in ("lora_unet_", "lora_te1_", "lora_te2_", "lora_te3_", "lora_te_", "diffusion_model.", "lycoris_"):
        if bare.startswith(beginning):
            return beginning.rstrip("_."), bare.removeprefix(beginning)
    return "", bare


def inspect(path: Path, model: Model | None = None) -> dict[str, Any]:
    """Everything about one adapter file as plain values; with a model also whether it is of that model."""
    file = opened.read(path)
    contents = alone(file) if model is None else model.read(path)
    measured = [measure(layer, no_model if model is None else model.base) for layer in contents.layers]
    tensors = file.tensors.values()
    report = {
        "file": str(path),
        "bytes": path.stat().st_size,
        "dialect": contents.dialect,
        "families": [model.family.name] if model else fits(file),
        "parameters": sum(t.numel() for t in tensors if t.ndim),
        "dtypes": _counted(
            str(file.narrow.get(n, t.dtype)).removeprefix("torch.") for n, t in file.tensors.items() if t.ndim
        ),
        **_shape(contents.layers),
        "norm": total(m.norm for m in measured if m.norm is not None),
        "unmeasured": sum(m.norm is None for m in measured),
        "blocks": blocks(measured),
        "spectrum": spectrum(measured),
        "zero": [f"{m.layer.part}.{m.layer.module}" for m in measured if m.zero],
        "metadata": {"keys": sorted(file.metadata), "private": leaks(file.metadata)},
        "leftover": contents.leftover,
    }
    return {**report, "warnings": warnings(report)}


def _shape(layers: Sequence[Layer]) -> dict[str, Any]:
    """How many layers there are of each kind, part, rank, alpha and scale."""
    dora = [layer for layer in layers if {"magnitude", "base_magnitude"} & set(layer.tensors)]
    return {
        "layers": len(layers),
        "kinds": _counted(layer.kind for layer in layers) | ({"dora": len(dora)} if dora else {}),
        "parts": _counted(layer.part for layer in layers),
        "ranks": _counted(str(layer.rank) for layer in layers if layer.rank is not None),
        "alphas": _counted("none" if layer.alpha is None else f"{layer.alpha:g}" for layer in layers),
        "scales": _counted(f"{layer.scale:g}" for layer in layers if layer.rank is not None),
    }


def _counted(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def blocks(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Norm of the change by block (a name up to its first number), in the file's order."""
    found: dict[str, list[Measured]] = defaultdict(list)
    for one in measured:
        match = BLOCK.match(one.layer.module)
        found[f"{one.layer.part}.{match.group(1) if match else one.layer.module}".lstrip(".")].append(one)
    return [
        {"block": name, "layers": len(own), "norm": total(m.norm for m in own if m.norm is not None)}
        for name, own in sorted(found.items(), key=lambda item: _in_order(item[0]))
    ]


def _in_order(name: str) -> list[tuple[bool, int, str]]:
    pieces = [(p.isdecimal() and len(p) < 20, p) for p in re.split(r"(\d+)", name)]
    return [(number, int(p) if number else 0, p) for number, p in pieces]


def warnings(report: dict[str, Any]) -> list[str]:
    """What a person should look at, one sentence each."""
    told = []
    if zero := len(report["zero"]):
        never = "it was never trained" if zero == 1 else "they were never trained"
        told.append(f"{zero} of {report['layers']} layers {'is' if zero == 1 else 'are'} zero: {never}.")
    if left := report["leftover"]:
        verb = "key was" if len(left) == 1 else "keys were"
        why = "".join(f"; {reason}" for reason in dialects.reasons(left))
        told.append(f"{len(left)} {verb} not understood, such as {left[0]}{why}.")
    if private := report["metadata"]["private"]:
        what = ", ".join(f"{v} ({k})" for k, v in private.items())
        told.append(f"The metadata holds {what}; `lora convert --metadata share` leaves that out.")
    if report["unmeasured"]:
        told.append(f"{report['unmeasured']} layers depend on the base's weights; give --model to measure them.")
    if len(report["families"]) != 1:
        several = ", ".join(report["families"])
        told.append(
            f"It may be of {several}; say which with --family." if several else "It is of no family known here."
        )
    return told
