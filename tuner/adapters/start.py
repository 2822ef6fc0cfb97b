"""Adapters that a run begins with: found on disk, read, and brought together with what the recipe says."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import checkpoint
from ..errors import UserError
from ..family import Family
from ..formats import dialects, places
from ..formats import file as opened
from ..formats.layers import Layer
from ..formats.write import FILE, PEFT_FILE
from ..recipe import LoraSpec, LoraTextSpec, TextSpec
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
    """What an adapter file, in any dialect, says of the denoiser and of the text encoders that `family` can train.

    Raises `UserError` when it is no such file, or has a key that was not understood.
    """
    if path.is_dir():
        raise UserError(f"{path} is a whole model or a ControlNet, not an adapter; give an adapter file.")
    file, part = opened.read(path), family.denoiser.removesuffix("_2")
    names = family.named(source.config(family.denoiser))
    networks = {part: places.shapes(source.outline(family.denoiser))}
    contents = dialects.understood(file, places.Places(names, networks))
    if contents.leftover and family.trainable_text:
        networks |= {p: places.shapes(source.outline(p)) for p in family.trainable_text if source.has(p)}
        contents = dialects.understood(file, places.Places(names, networks))
    dialects.matched(contents, path, f"{family.title} (family {family.name})")
    if contents.leftover:
        raise UserError(f"{dialects.told(contents, path)}; take a file that fits this model whole.")
    return contents.layers


def of_text(layers: Iterable[Layer], family: Family) -> list[Layer]:
    """Those of the text encoders that can train."""
    return [layer for layer in layers if layer.part in family.trainable_text]


def text_name(part: str, module: str) -> str:
    """How settings and files call a text encoder's module: `text_encoder.text_model.encoder.layers.0 ...`, whatever
    the installed library says."""
    bare = module.removeprefix(PREFIX)
    return f"{part}.{bare if bare.startswith('text_projection') else PREFIX + bare}"


PREFIX = "text_model."
"""Published files name CLIP's layers below it; transformers has it in one of its two classes only."""
LAYER = re.compile(r"(?:text_model\.)?encoder\.layers\.(\d+)\.(?:self_attn\.(?:[qkv]|out)_proj|mlp\.fc[12])")


def text_layers(encoder: nn.Module, unread: int) -> list[str]:
    """Full names of the linear layers of a CLIP text encoder without its last `unread` blocks."""
    found = [m for name, _ in encoder.named_modules() if (m := LAYER.fullmatch(name))]
    count = len({m[1] for m in found})
    return [m[0] for m in found if int(m[1]) < count - unread]


# -- with the recipe ---------------------------------------------------------------------------------------------------


def wrong_patterns(spec: LoraSpec) -> str | None:
    """A sentence about a pattern of `ranks` or `alphas` that is none."""
    for where, own in (("adapter", spec), ("adapter.text", spec.text)):
        for key in ("ranks", "alphas"):
            for pattern in getattr(own, key, ()):
                try:
                    re.compile(pattern)
                except re.error as error:
                    return f"{where}.{key}: {pattern!r} is no regular expression ({error}); correct it."
    return None


def shapes(spec: LoraSpec, layers: Sequence[str], where: str = "adapter") -> dict[str, tuple[int, float]]:
    """Layer → (rank, alpha), the scale being alpha / rank. Raises `UserError` for a pattern that fits no layer."""
    for key in ("ranks", "alphas"):
        for pattern in getattr(spec, key):
            if not any(_fits(pattern, name) for name in layers):
                endings = sorted({re.sub(r"^.*?\.\d+\.", "", n) for n in layers})
                raise UserError(
                    f"{where}.{key}: {pattern!r} matches none of the layers that its targets choose; they end in "
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
    layers = joined(layers_of(path, family, source))
    for layer in layers:
        if layer.kind != "lora" or "mid" in layer.tensors:
            kind = "a LoRA with a core" if layer.kind == "lora" else f"of the kind {layer.kind}"
            raise UserError(f"adapter.start: {path} is {kind}, and adapter.kind is lora; start from a plain LoRA.")
    return [replace(layer, alpha=float(layer.rank or 1) if layer.alpha is None else layer.alpha) for layer in layers]


def joined(layers: Iterable[Layer]) -> list[Layer]:
    """A LoRA and the difference of a bias on one module as a LoRA with a bias, which some files keep apart."""
    found: dict[tuple[str, str], Layer] = {}
    for layer in layers:
        other = found.setdefault((layer.part, layer.module), layer)
        if other is layer:
            continue
        low, bias = (other, layer) if other.kind == "lora" else (layer, other)
        first, second = other.kind, layer.kind
        if low.kind != "lora" or bias.kind != "diff" or set(bias.tensors) != {"bias"} or "bias" in low.tensors:
            raise UserError(
                f"adapter.start: {layer.part}.{layer.module} is changed twice there ({first} and {second}), "
                "which cannot be trained on; bake it into a model with `tuner lora bake`, and start from that."
            )
        tensors = {**low.tensors, "bias": bias.tensors["bias"].float() / low.scale}
        found[layer.part, layer.module] = replace(low, tensors=tensors)
    return list(found.values())


def understood(spec: LoraSpec, family: Family, source: Source) -> LoraSpec:
    """The recipe's adapter with what the file of `start` says written out, of the text encoders too.

    Raises `UserError` when a setting that was given says something else.
    """
    assert spec.start is not None
    layers = lora_of(spec.start, family, source)
    text = of_text(layers, family)
    if own := [layer for layer in layers if layer.part not in family.trainable_text]:
        said = _said({layer.module: layer for layer in own})
        spec = spec.model_copy(update={k: v for k, v in said.items() if k not in spec.model_fields_set})
        _agree(spec, own, "adapter", {layer.module: layer for layer in own})
    if not text:
        return spec
    given = spec.text or LoraTextSpec(frozen=True)
    named = {text_name(layer.part, layer.module): layer for layer in text}
    said = _said(named) | {"parts": parts_of(text, family)}
    said["form"] = "dora" if said.pop("dora") else "plain"
    said["form"] = "bias" if said.pop("bias") else said["form"]
    given = given.model_copy(update={k: v for k, v in said.items() if getattr(given, k) in (None, {})})
    more = further(given, parts_of(text, family), family, source)
    given = given.model_copy(update={"targets": [*(given.targets or ()), *more]})
    spec = spec.model_copy(update={"text": given})
    _agree(spec.of_text(), text, "adapter.text", named)
    return spec


def _said(layers: Mapping[str, Layer]) -> dict[str, Any]:
    """The settings with which these layers, by name, are as they are."""
    given = {name: (layer.rank or 0, float(layer.alpha or 0)) for name, layer in layers.items()}
    rank = Counter(r for r, _ in given.values()).most_common(1)[0][0]
    alpha = Counter(a for _, a in given.values()).most_common(1)[0][0]
    return {
        "rank": rank, "alpha": alpha, "targets": list(given),
        "ranks": {re.escape(name): r for name, (r, _) in given.items() if r != rank},
        "alphas": {re.escape(name): a for name, (_, a) in given.items() if a != alpha},
        "dora": any(DORA & set(layer.tensors) for layer in layers.values()),
        "bias": any("bias" in layer.tensors for layer in layers.values()),
    }  # fmt: skip


def parts_of(text: Sequence[Layer], family: Family) -> list[str]:
    """The text encoders of which a file says something."""
    return [part for part in family.trainable_text if any(layer.part == part for layer in text)]


def further(spec: TextSpec, there: Sequence[str], family: Family, source: Source) -> list[str]:
    """The usual layers of text encoders that shall train and are not among those of the file (`there`), as targets.

    Raises `UserError` where one that it changes is left out.
    """
    asked = spec.parts or []
    if left := [part for part in there if part not in asked]:
        raise UserError(
            f"adapter.text.parts leaves out {left[0]}, of which the adapter of adapter.start has a part; leave "
            "adapter.text.parts out to take those of the file."
        )
    new = [part for part in asked if part not in there and part in family.trainable_text and source.has(part)]
    known = {t.partition(".")[0] for t in spec.targets or ()}
    return [
        text_name(part, name)
        for part in new
        if part not in known
        for name in text_layers(source.outline(part), family.trainable_text[part])
    ]


def text_parts(start: str, family: Family, source: Source) -> list[str]:
    """The text encoders of which the adapter that a run goes on from says something. Raises `UserError`."""
    path = find(start)
    if not family.trainable_text or path.is_dir():
        return []
    if opened.STATED in opened.header(path):
        began = {k.partition(".")[0] for k in opened.read(path).tensors}
        return [part for part in family.trainable_text if part in began]
    return parts_of(of_text(layers_of(path, family, source), family), family)


DORA = {"magnitude", "base_magnitude"}
"""Tensors of a layer by which it is decomposed."""


def _agree(spec: LoraSpec, layers: Sequence[Layer], where: str, named: Mapping[str, Layer]) -> None:
    """Raise `UserError` for a setting that says something else than the file."""
    for name, made in shapes(spec, list(named), where).items():
        rank, alpha = named[name].rank or 0, float(named[name].alpha or 0)
        if made != (rank, alpha):
            raise UserError(
                f"{where}.rank and alpha make {made[0]} and {made[1]:g} of {name}, but {spec.start} has "
                f"{rank} and {alpha:g}; leave them out to take those of the file."
            )
    for key, tensors in (("dora", DORA), ("bias", {"bias"})):
        has = any(tensors & set(layer.tensors) for layer in layers)
        if getattr(spec, key) != has:
            setting = f"{where}.{key}" if where == "adapter" else f"{where}.form ({key})"
            raise UserError(
                f"{setting} is {getattr(spec, key)}, but the adapter {spec.start} was trained with {has}; "
                f"leave {setting.partition(' ')[0]} out to take that of the file."
            )
