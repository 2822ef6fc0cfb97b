"""Adapters that a run begins with: found on disk, read, and brought together with what the recipe says."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import checkpoint
from ..errors import UserError
from ..family import Family
from ..formats import dialects, places
from ..formats.layers import Layer
from ..formats.write import FILE, PEFT_FILE
from ..recipe import LoraSpec
from ..source import Source


def find(adapter: str) -> Path:
    """The file or model folder that a run folder, a checkpoint or a path stands for. Raises `UserError`."""
    path = Path(adapter).expanduser()
    for candidate in (
        path / "export" / "diffusers" / FILE,
        path / "export" / "diffusers" / PEFT_FILE,
        path / "export" / "peft" / PEFT_FILE,
        path / "export" / "model",
        *(
            f
            for format in ("lycoris", "comfyui", "kohya")
            for f in sorted((path / "export" / format).glob("*.safetensors"))
        ),
        path / "export" / "controlnet" / FILE,
        path / "export" / "controlnet",
        path / checkpoint.WEIGHTS,
        path / FILE,
        path / PEFT_FILE,
    ):
        if candidate.exists():
            return candidate
    if path.is_file() and path.suffix != ".safetensors":
        raise UserError(f"{adapter} is no .safetensors file; other formats can hold programs and are not opened.")
    if path.is_file() or any((path / name).is_file() for name in ("model_index.json", "config.json")):
        return path
    if whole := checkpoint.complete(path):
        return whole[-1] / checkpoint.WEIGHTS
    raise UserError(
        f"{adapter} holds no adapter: no export, no checkpoint, no model; let the run reach a checkpoint first."
    )


def layers_of(path: Path, family: Family, source: Source) -> list[Layer]:
    """What an adapter file, in any dialect, says of the network that `family` trains.

    Raises `UserError` when it is no such file, or has a key that was not understood.
    """
    if path.is_dir():
        raise UserError(f"{path} is a whole model or a ControlNet, not an adapter; give an adapter file.")
    part = family.denoiser.removesuffix("_2")
    networks = {part: places.shapes(source.outline(family.denoiser))}
    contents = dialects.read(path, family.named(source.config(family.denoiser)), networks)
    dialects.matched(contents, path, f"{family.title} (family {family.name})")
    if contents.leftover:
        raise UserError(f"{dialects.told(contents, path)}; take a file that fits this model whole.")
    return contents.layers


# -- with the recipe ---------------------------------------------------------------------------------------------------


def wrong_patterns(spec: LoraSpec) -> str | None:
    """A sentence about a pattern of `ranks` or `alphas` that is none."""
    for key in ("ranks", "alphas"):
        for pattern in getattr(spec, key):
            try:
                re.compile(pattern)
            except re.error as error:
                return f"adapter.{key}: {pattern!r} is no regular expression ({error}); correct it."
    return None


def shapes(spec: LoraSpec, layers: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Layer → (rank, alpha), the scale being alpha / rank. Raises `UserError` for a pattern that fits no layer."""
    for key in ("ranks", "alphas"):
        for pattern in getattr(spec, key):
            if not any(_fits(pattern, name) for name in layers):
                endings = sorted({re.sub(r"^.*?\.\d+\.", "", n) for n in layers})
                raise UserError(
                    f"adapter.{key}: {pattern!r} matches none of the layers that adapter.targets chooses; they end in "
                    f"{', '.join(endings[:20])}."
                )
    found = {}
    for name in layers:
        rank = next((r for p, r in spec.ranks.items() if _fits(p, name)), spec.rank)
        alpha = next((a for p, a in spec.alphas.items() if _fits(p, name)), spec.alpha)
        alpha = float(rank if alpha is None else alpha)
        found[name] = (rank, alpha * math.sqrt(rank) if spec.rslora else alpha)
    return found


def _fits(pattern: str, name: str) -> bool:
    return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None


def lora_of(start: str, family: Family, source: Source) -> list[Layer]:
    """The layers of the adapter that a LoRA goes on from. Raises `UserError` when it is of another kind."""
    path = find(start)
    layers = layers_of(path, family, source)
    for layer in layers:
        if layer.kind != "lora" or "mid" in layer.tensors:
            kind = "a LoRA with a core" if layer.kind == "lora" else f"of the kind {layer.kind}"
            raise UserError(f"adapter.start: {path} is {kind}, and adapter.kind is lora; start from a plain LoRA.")
    return [replace(layer, alpha=float(layer.rank or 1) if layer.alpha is None else layer.alpha) for layer in layers]


def understood(spec: LoraSpec, family: Family, source: Source) -> LoraSpec:
    """The recipe's adapter with what the file of `start` says written out.

    Raises `UserError` when a setting that was given says something else.
    """
    assert spec.start is not None
    layers = lora_of(spec.start, family, source)
    given = {layer.module: (layer.rank or 0, float(layer.alpha or 0)) for layer in layers}
    rank = Counter(r for r, _ in given.values()).most_common(1)[0][0]
    alpha = Counter(a for _, a in given.values()).most_common(1)[0][0]
    said = {
        "rank": rank, "alpha": alpha, "targets": list(given),
        "ranks": {re.escape(name): r for name, (r, _) in given.items() if r != rank},
        "alphas": {re.escape(name): a for name, (_, a) in given.items() if a != alpha},
        "dora": any("magnitude" in layer.tensors for layer in layers),
        "bias": any("bias" in layer.tensors for layer in layers),
    }  # fmt: skip
    spec = spec.model_copy(update={k: v for k, v in said.items() if k not in spec.model_fields_set})
    for sentence in _contradictions(spec, given, said):
        raise UserError(sentence)
    return spec


def _contradictions(spec: LoraSpec, given: dict[str, tuple[int, float]], said: dict[str, Any]) -> Iterator[str]:
    for name, (rank, alpha) in shapes(spec, list(given)).items():
        if (rank, alpha) != given[name]:
            yield (
                f"adapter.rank and adapter.alpha make {rank} and {alpha:g} of {name}, but {spec.start} has "
                f"{given[name][0]} and {given[name][1]:g}; leave them out to take those of the file."
            )
    for key in ("dora", "bias"):
        if getattr(spec, key) != said[key]:
            yield (
                f"adapter.{key} is {getattr(spec, key)}, but the adapter {spec.start} was trained with {said[key]}; "
                f"leave adapter.{key} out to take that of the file."
            )
