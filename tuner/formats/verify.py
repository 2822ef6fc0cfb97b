"""A written file opened again, mapped as its target maps it, and compared with what trained."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from . import dialects
from . import file as opened
from .fuse import Weight
from .layers import Contents, Layer
from .places import Place, Places, published
from .write import DTYPES, MAGNITUDE, Layout

COMFYUI_KEYS = re.compile(
    r"\.(?:lora_(?:up|down|mid)\.weight|lora_[AB]\.weight|alpha|dora_scale|hada_(?:w[12]_[ab]|t[12])|"
    r"lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale|[ab][12]\.weight|diff|diff_b|w_norm|b_norm)$"
)
"""Endings that ComfyUI's loader reads."""
TARGETS = {
    "diffusers": ("diffusers",),
    "comfyui": ("ComfyUI",),
    "kohya": ("kohya-style tools",),
    "lycoris": ("lycoris-lora",),
}


@dataclass(frozen=True)
class Check:
    """What a file is compared with. layers: what trained. weight: the base. places: all names of the model."""

    layers: Sequence[Layer]
    places: Places
    weight: Weight
    precision: str


def check(path: Path, format: str, against: Check, pipeline: Any = None, layout: Layout = "pipeline") -> list[str]:
    """What is wrong with a written file, one sentence each; [] when it loads as it was trained.

    pipeline: diffusers' class, whose own conversion of adapter files is used where it has one (layout: pipeline).
    """
    try:
        file = opened.read(path)
        if format == "diffusers":
            contents = _diffusers(file, against.places, pipeline, layout)
        else:
            unread = _unread(file, format, against.places)
            if unread:
                return [f"{len(unread)} keys have no place in {TARGETS[format][0]}, such as {unread[0]}"]
            contents = dialects.understood(file, against.places, as_comfyui=format == "comfyui")
    except (UserError, ValueError, KeyError, RuntimeError) as error:
        return [f"it cannot be read again: {error}"]
    problems = []
    if contents.leftover:
        problems.append(f"{len(contents.leftover)} keys were not understood, such as {contents.leftover[0]}")
    return problems + different(contents, against)


def _diffusers(file: opened.File, places: Places, pipeline: Any, layout: Layout) -> Contents:
    """As diffusers' own conversion hands the file to the network, with what the header states."""
    if layout != "pipeline":
        return dialects.understood(file, places)
    found = pipeline.lora_state_dict(
        str(file.path.parent), weight_name=file.path.name, return_lora_metadata=True, local_files_only=True
    )
    state, stated = found[0], found[-1]
    lost = len(file.tensors) - len(state)
    if lost:
        raise ValueError(f"diffusers' own conversion leaves out {lost} of its tensors")
    if deaf := [k for k in file.tensors if k.partition(".")[0] in places.text and k.endswith(f".{MAGNITUDE}")]:
        raise ValueError(f"transformers' loader does not find {deaf[0]} without .weight behind it")
    converted = replace(file, tensors=state, metadata=file.metadata if stated else {})
    return dialects.understood(converted, places)


def _unread(file: opened.File, format: str, places: Places) -> list[str]:
    """Keys that the target's loader does not look up."""
    known = accepted(format, places)
    wrong = []
    for key in file.tensors:
        ending = COMFYUI_KEYS.search(key)
        if format == "lycoris":
            name = re.split(r"\.", key, maxsplit=1)[0]
        elif ending is None:
            wrong.append(key)
            continue
        else:
            name = key[: ending.start()]
        if name not in known:
            wrong.append(key)
    return wrong


def accepted(format: str, places: Places) -> set[str]:
    """The modules' names that a target's loader looks up, of those that we write.

    ComfyUI: the original network's names behind `diffusion_model.` and those of its text encoders; flat names of the
    original behind `lora_unet_` are accepted by it too, and are what kohya's tools read.
    """
    text = {
        part: [published(m, table) for m in table] for part, table in places.networks.items() if part != places.denoiser
    }
    if format == "lycoris":
        own = {m.replace(".", "_") for m in places.networks[places.denoiser]}
        return {f"lycoris_{m}" for m in own} | {
            f"lycoris_{part}_{m.replace('.', '_')}" for part in text for m in places.networks[part]
        }
    side = 0 if format == "kohya" else 1
    prefixes = {part: pair[side] for part, pair in places.names.text.items() if pair[side]}
    names = [f"{prefixes[part]}{m}" for part, modules in text.items() if part in prefixes for m in modules]
    if format == "comfyui":
        tabled = places.comfyui().items()
        return {*names, *(f"{places.names.prefix}{name}" for name, place in tabled if _named(name, place, places))}
    flat = {f"lora_unet_{name.replace('.', '_')}" for name in places.kohya()}
    return flat | {_flat_text(n) for n in names}


def _named(name: str, place: Place, places: Places) -> bool:
    """Whether ComfyUI's name is known: a table that lists no norms says nothing of theirs (FLUX.1's q norm is
    `double_blocks.0.img_attn.norm.query_norm` there, and its weight `scale`)."""
    return len(place.shape) > 1 or name in places.native or not places.names.native


def _flat_text(name: str) -> str:
    return name.replace(".", "_")


def different(contents: Contents, against: Check) -> list[str]:
    """Where a file's change of a weight or bias is not that of the live layers, within the rounding of its numbers."""
    live, read = _by_module(against.layers), _by_module(contents.layers)
    wrong = []
    for key in dict.fromkeys([*live, *read]):
        base = against.weight(*key)
        wanted, given = (_change(side.get(key, []), base) for side in (live, read))
        rounded = _change([_rounded(layer, against.precision) for layer in live.get(key, [])], base)
        for what, a, b, r in zip(("weight", "bias"), wanted, given, rounded, strict=True):
            if not _near((a, b, r), against.precision, _whole(live.get(key, []) + read.get(key, []), base)):
                wrong.append(f"{what} of {key[0]}.{key[1]}")
    if not wrong:
        return []
    return [f"its change of {len(wrong)} of {len(live)} layers is not the trained one, such as the {wrong[0]}"]


def _by_module(layers: Sequence[Layer]) -> dict[tuple[str, str], list[Layer]]:
    found: dict[tuple[str, str], list[Layer]] = defaultdict(list)
    for layer in layers:
        found[layer.part, layer.module].append(layer)
    return found


def _change(layers: Sequence[Layer], base: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(change of the weight, of the bias) of all layers of one module, float32; None for none."""
    weights = [layer.delta(base).cpu() for layer in layers if layer.kind != "diff" or "weight" in layer.tensors]
    biases = [b.cpu() for b in (layer.bias() for layer in layers) if b is not None]
    return (sum(weights) if weights else None, sum(biases) if biases else None)  # type: ignore[return-value]


def _rounded(layer: Layer, precision: str) -> Layer:
    fine = ("magnitude", "base_magnitude")
    cast = {k: v if k in fine else v.to(DTYPES[precision]) for k, v in layer.tensors.items()}
    return replace(layer, tensors=cast)


def _whole(layers: Sequence[Layer], base: Tensor | None) -> float:
    """The length of the base where a change is the difference of two whole weights (DoRA), each rounded to float32."""
    if base is None or not any({"magnitude", "base_magnitude"} & set(layer.tensors) for layer in layers):
        return 0.0
    return float(base.float().norm())


def _near(tensors: tuple[Tensor | None, ...], precision: str, whole: float) -> bool:
    """Live and read are equal up to a few roundings: thrice what rounding the live factors costs, and float32's own."""
    live, read, rounded = tensors
    if live is None and read is None:
        return True
    zero = torch.zeros_like(live if live is not None else read)  # type: ignore[arg-type]
    live, read, rounded = (zero if t is None else t.reshape(zero.shape) for t in (live, read, rounded))
    off, size = (read - live).norm(), live.norm()
    allowed = 3 * (rounded - live).norm() + (torch.finfo(DTYPES[precision]).eps + 1e-5) * size + 1e-6 * whole
    return bool(off <= allowed)
