"""Adapters that a run begins with: found on disk, read, and brought together with what the recipe says."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import checkpoint
from ..errors import UserError
from ..family import Family
from ..formats.layers import Layer
from ..recipe import LoraSpec

FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_model.safetensors"
METADATA = "lora_adapter_metadata"
ENDINGS = {"lora_A.weight": "down", "lora_B.weight": "up", "lora_magnitude_vector": "magnitude", "lora_B.bias": "bias"}
PARTS = ("transformer", "unet", "prior", "text_encoder", "text_encoder_2", "text_encoder_3")


def find(adapter: str) -> Path:
    """The file or model folder that a run folder, a checkpoint or a path stands for. Raises `UserError`."""
    path = Path(adapter).expanduser()
    for candidate in (
        path / "export" / "diffusers" / FILE,
        path / "export" / "diffusers" / PEFT_FILE,
        path / "export" / "model",
        path / checkpoint.WEIGHTS,
        path / FILE,
        path / PEFT_FILE,
    ):
        if candidate.exists():
            return candidate
    if path.is_file() and path.suffix != ".safetensors":
        raise UserError(f"{adapter} is no .safetensors file; other formats can hold programs and are not opened.")
    if path.is_file() or (path / "model_index.json").is_file():
        return path
    if whole := checkpoint.complete(path):
        return whole[-1] / checkpoint.WEIGHTS
    raise UserError(
        f"{adapter} holds no adapter: no export, no checkpoint, no model; let the run reach a checkpoint first."
    )


def layers_of(path: Path, family: Family) -> list[Layer]:
    """What an adapter file in the diffusers layout says of the network that `family` trains.

    Raises `UserError` when it is no such file, or changes something else too.
    """
    part = family.denoiser.removesuffix("_2")
    try:
        with safe_open(path, "pt") as file:
            stated = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            keys: list[str] = list(file.keys())
            own = [k for k in keys if k.startswith(f"{part}.")]
            others = ("base_model.model.", *(f"{p}." for p in PARTS))
            before = f"{part}." if own else next((b for b in others if keys[0].startswith(b)), "")
            if before.rstrip(".") in PARTS and not own:
                raise UserError(
                    f"{path} is an adapter of {before.rstrip('.')}, and {family.title} (family {family.name}) has its "
                    f"on {part}; take an adapter of this model."
                )
            modules: dict[str, dict[str, Tensor]] = {}
            for key in keys:
                module, kind = _split(key.removeprefix(before)) if key.startswith(before) else ("", "")
                if not kind:
                    raise UserError(
                        f"{path} has {key}, which is no part of a LoRA on {part} in the diffusers layout; take a file "
                        "that is one, such as those in a run's export/diffusers."
                    )
                modules.setdefault(module, {})[kind] = file.get_tensor(key)
    except (OSError, SafetensorError, IndexError) as error:
        raise UserError(f"{path} cannot be read as an adapter ({error}); take another file.") from None
    told = {k.removeprefix(f"{part}."): v for k, v in stated.items()}
    return [Layer(part, m, "lora", t, _alpha(m, t, told)) for m, t in modules.items() if _whole(path, m, t)]


def _split(key: str) -> tuple[str, str]:
    for ending, kind in ENDINGS.items():
        if key.endswith(f".{ending}"):
            return key.removesuffix(f".{ending}"), kind
    return "", ""


def _whole(path: Path, module: str, tensors: dict[str, Tensor]) -> bool:
    if not {"down", "up"} <= set(tensors):
        raise UserError(f"{path} has only a part of {module}; it is damaged, take another file.")
    return True


def _alpha(module: str, tensors: dict[str, Tensor], told: dict[str, Any]) -> float:
    """The alpha by which scale = alpha / rank; a file that states none means alpha = rank."""
    rank = tensors["down"].shape[0]
    stated = told.get("lora_alpha", rank)
    for pattern, value in (told.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            stated = value
            break
    return float(stated) * (math.sqrt(rank) if told.get("use_rslora") else 1.0)


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


def understood(spec: LoraSpec, family: Family) -> LoraSpec:
    """The recipe's adapter with what the file of `start` says written out.

    Raises `UserError` when a setting that was given says something else.
    """
    assert spec.start is not None
    layers = layers_of(find(spec.start), family)
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
