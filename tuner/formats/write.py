"""Layers as the tensors of a file: for diffusers, for ComfyUI, for kohya's tools, for LyCORIS."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import peft
import torch
from torch import Tensor, nn

from ..errors import UserError
from .dialects import DORA_NORM
from .file import METADATA
from .fitting import weight_shape
from .fuse import Weight, together
from .layers import Layer, unlimited
from .places import Place, Places, published

Format = Literal["diffusers", "comfyui", "kohya", "lycoris"]
FILE, PEFT_FILE = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
"""By these names diffusers and peft look for an adapter in a folder."""
Layout = Literal["pipeline", "network", "peft"]
"""Who reads an adapter file of a model: the pipeline, the network itself, or only peft."""


def layout(pipeline: Any, denoiser: nn.Module) -> Layout:
    """See `Layout`. pipeline: diffusers' class."""
    if hasattr(pipeline, "save_lora_weights"):
        return "pipeline"
    return "network" if hasattr(denoiser, "load_lora_adapter") else "peft"


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COMFYUI_READS = ("lora", "loha", "lokr", "oft", "boft", "glora", "diff")
"""The kinds that ComfyUI's loader and those of its kin know; everything else reaches them as a full difference."""


@dataclass
class Sheet:
    """What goes into a file. metadata: what its readers need, without which it would load wrongly.

    config: PEFT's `adapter_config.json`, for networks that only PEFT can load into.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None


def exact(tensors: dict[str, Tensor], precision: str) -> dict[str, Tensor]:
    """The tensors in a number format. Alphas and DoRA's lengths stay float32: rounding them would move whole weights.

    Raises `UserError` where fp16 cannot hold a value.
    """
    kept = {}
    for name, value in tensors.items():
        fine = name.endswith((".alpha", ".dora_scale", MAGNITUDE, f"{MAGNITUDE}.weight"))
        kept[name] = value.detach().to("cpu", torch.float32 if fine else DTYPES[precision]).contiguous()
        if not torch.isfinite(kept[name]).all() and torch.isfinite(value).all():
            raise UserError(f"save.precision is {precision}, which cannot hold the values of {name}; take bf16.")
    return kept


# -- diffusers ---------------------------------------------------------------------------------------------------------


def diffusers(layers: Sequence[Layer], layout: Layout, places: Places) -> Sheet:
    """PEFT's keys; ranks, alphas and DoRA stand in the header, by which diffusers loads mixed ones as they are.

    layout: who reads the file, and so what stands before the names. Raises `UserError` for what is no LoRA.
    """
    if strange := next((layer for layer in layers if not plain(layer)), None):
        raise UserError(
            f"diffusers loads LoRA alone, but {strange.module} is {strange.kind}; write comfyui, kohya or lycoris."
        )
    if len({"magnitude" in layer.tensors for layer in layers}) > 1:
        raise UserError("diffusers loads DoRA on all layers or on none; write comfyui instead, which takes both.")
    tensors: dict[str, Tensor] = {}
    stated: dict[str, Any] = {}
    config: dict[str, Any] = {}
    for part in dict.fromkeys(layer.part for layer in layers):
        own = [layer for layer in layers if layer.part == part]
        text = part in places.text
        config = settings(own, text)
        stated |= {f"{part}.{k}" if layout == "pipeline" else k: v for k, v in config.items()}
        before = {"pipeline": f"{part}.", "network": "", "peft": "base_model.model."}[layout]
        for layer in own:
            name = published(layer.module, places.networks[part]) if text else layer.module
            tensors |= {f"{before}{name}.{key}": value for key, value in _peft_keys(layer, text)}
    header = {"format": "pt", METADATA: json.dumps(stated, default=str)}
    return Sheet(tensors, header, {**config, "base_model_name_or_path": None} if layout == "peft" else None)


def plain(layer: Layer) -> bool:
    """Whether diffusers can load it: a LoRA or DoRA by rows, of two factors."""
    by_columns = layer.tensors.get("magnitude")
    columns = by_columns is not None and by_columns.ndim == 2 and by_columns.shape[0] == 1
    return layer.kind == "lora" and not {"mid", "base_magnitude"} & set(layer.tensors) and not columns


def _peft_keys(layer: Layer, text: bool) -> Iterator[tuple[str, Tensor]]:
    """text: of a text encoder, where transformers' loader finds DoRA's lengths by their full name alone (5.23)."""
    t = layer.tensors
    yield "lora_A.weight", t["down"]
    yield "lora_B.weight", t["up"]
    if "bias" in t:
        yield "lora_B.bias", t["bias"]
    if "magnitude" in t:
        vector = t["magnitude"].flatten()
        # a convolution's stands along the second axis, as peft keeps it
        yield MAGNITUDE + ".weight" * text, vector if t["down"].ndim == 2 else vector.reshape(1, -1, 1, 1)


MAGNITUDE = "lora_magnitude_vector"


def settings(layers: Sequence[Layer], text: bool = False) -> dict[str, Any]:
    """PEFT's configuration of these layers: the commonest rank and alpha, and by full name where a layer has others.

    text: of a text encoder, whose modules begin with `text_model.` in some releases of transformers; PEFT finds them
    by how they end.
    """
    layers = [replace(one, module=one.module.removeprefix("text_model.")) for one in layers] if text else layers
    ranks = {layer.module: layer.rank or 1 for layer in layers}
    alphas = {layer.module: layer.scale * ranks[layer.module] for layer in layers}
    bound = "" if text else "^"  # peft lets a pattern match endings too
    rank, alpha = (Counter(v.values()).most_common(1)[0][0] for v in (ranks, alphas))
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=_number(alpha),
        rank_pattern={f"{bound}{m}": r for m, r in ranks.items() if r != rank},
        alpha_pattern={f"{bound}{m}": _number(a) for m, a in alphas.items() if a != alpha},
        target_modules=sorted(ranks),
        use_dora=any("magnitude" in layer.tensors for layer in layers),
        lora_bias=any("bias" in layer.tensors for layer in layers),
    )
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}


def _number(value: float) -> float | int:
    return int(value) if float(value).is_integer() else value


# -- names outside of diffusers ----------------------------------------------------------------------------------------


def comfyui(layers: Sequence[Layer], places: Places, weight: Weight) -> Sheet:
    """The original network's names; q, k and v joined where it has them in one. DoRA as ComfyUI divides it."""
    known = [_for_comfyui(layer, weight) for layer in layers]
    tensors: dict[str, Tensor] = {}
    text = {part: prefix for part, (_, prefix) in places.names.text.items()}
    for name, layer in _renamed(known, places, places.comfyui(), weight):
        if layer.part in places.text:
            if not text.get(layer.part):
                raise UserError(f"ComfyUI has no place for an adapter of {layer.part}; write diffusers instead.")
            before = text[layer.part]
        else:
            before = places.names.prefix
        tensors |= {f"{before}{name}.{key}": value for key, value in _keys(layer)}
    rows = any("base_magnitude" in layer.tensors for layer in known)
    return Sheet(tensors, {DORA_NORM: "base"} if rows else {})


def _for_comfyui(layer: Layer, weight: Weight) -> Layer:
    """ComfyUI divides a row by its length in the base, everyone else by that of the changed weight: the scale makes up
    for it. Kinds that it does not know become the difference that they make. What the limit of a rotation is counted
    in it and LyCORIS see differently (ComfyUI 0.29), so that it is put into the blocks."""
    if layer.kind not in COMFYUI_READS or "rescale" in layer.tensors:  # it looks at the key and does not use it
        return as_difference(layer, weight)
    if layer.kind in ("oft", "boft"):
        return unlimited(layer)
    magnitude = layer.tensors.get("magnitude")
    if magnitude is None or (magnitude.ndim > 1 and magnitude.shape[0] == 1):
        return layer
    base = _base(layer, weight)
    kept = {k: v for k, v in layer.tensors.items() if k != "magnitude"}
    whole = base + replace(layer, tensors=kept).delta(base)
    lengths = [w.flatten(1).norm(dim=1) for w in (base, whole)]
    return replace(layer, tensors={**kept, "base_magnitude": magnitude.flatten().float() * lengths[0] / lengths[1]})


def as_difference(layer: Layer, weight: Weight) -> Layer:
    """The same change as a full difference."""
    bias = layer.bias()
    return replace(
        layer,
        kind="diff",
        tensors={"weight": layer.delta(_base(layer, weight)), **({} if bias is None else {"bias": bias})},
        alpha=None,
    )


def _base(layer: Layer, weight: Weight) -> Tensor:
    base = weight(layer.part, layer.module)
    if base is None:
        raise UserError(f"{layer.module} ({layer.kind}) needs its base model at hand to be written so; name it.")
    return base.float().cpu()


def kohya(layers: Sequence[Layer], places: Places, weight: Weight) -> Sheet:
    """Flat names behind `lora_unet_`, as kohya's tools and whoever follows them read."""
    tensors: dict[str, Tensor] = {}
    known = [layer if layer.kind in COMFYUI_READS else as_difference(layer, weight) for layer in layers]
    for name, layer in _renamed(known, places, places.kohya(), weight):
        before = "lora_unet_"
        if layer.part in places.text:
            before = places.names.text.get(layer.part, ("", ""))[0]
            if not before:
                raise UserError(f"kohya-like tools have no place for an adapter of {layer.part}; write diffusers.")
        tensors |= {f"{before}{name.replace('.', '_')}.{key}": value for key, value in _keys(layer)}
    return Sheet(tensors)


def lycoris(layers: Sequence[Layer], places: Places, weight: Weight) -> Sheet:
    """Diffusers' names flattened behind `lycoris_`: what the LyCORIS library itself writes and loads."""
    tensors: dict[str, Tensor] = {}
    for layer in [x if x.kind in KEYS else as_difference(x, weight) for x in layers]:
        before = "lycoris_" if layer.part not in places.text else f"lycoris_{layer.part}_"
        name = layer.module.replace(".", "_")
        tensors |= {f"{before}{name}.{key}": value for key, value in _keys(layer)}
    return Sheet(tensors)


WRITERS: dict[str, Callable[[Sequence[Layer], Places, Weight], Sheet]] = {
    "comfyui": comfyui, "kohya": kohya, "lycoris": lycoris,
}  # fmt: skip


def _renamed(
    layers: Sequence[Layer], places: Places, table: dict[str, Place], weight: Weight
) -> Iterator[tuple[str, Layer]]:
    """(name there, layer of that weight), modules that lie in one weight joined. Raises `UserError`."""
    by_module: dict[tuple[str, str], list[Layer]] = {}
    for layer in layers:
        by_module.setdefault((layer.part, layer.module), []).append(layer)
    there = {module: name for name, place in table.items() for module in place.modules}
    done = set()
    for part, module in by_module:
        if part in places.text:
            for layer in by_module[part, module]:
                yield published(module, places.networks[part]), layer
            continue
        if (name := there.get(module)) is None:
            raise UserError(f"{module} is no module of this network; the adapter is of another model.")
        if name in done:
            continue
        done.add(name)
        given = [by_module.get((part, m), []) for m in table[name].modules]
        for together_ in _rounds(given):
            try:
                yield name, together(together_, table[name], name, weight)
            except ValueError as error:
                raise UserError(f"{name}: {error}.") from None


def _rounds(given: list[list[Layer]]) -> Iterator[list[Layer]]:
    """A module may have a LoRA and the difference of a bias: one of each module at a time."""
    for i in range(max(len(own) for own in given)):
        yield [own[i] for own in given if i < len(own)]


KEYS = {
    "lora": {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"},
    "loha": {n: f"hada_{n}" for n in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    "lokr": {n: f"lokr_{n}" for n in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "oft": {"blocks": "oft_blocks", "rescale": "rescale"},
    "boft": {"blocks": "oft_blocks", "rescale": "rescale"},
    "glora": {n: f"{n}.weight" for n in ("a1", "a2", "b1", "b2", "bm")},
    "ia3": {"weight": "weight", "on_input": "on_input"},
    "diff": {"weight": "diff", "bias": "diff_b"},
}


def _keys(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """A layer's keys in the dialect that kohya, LyCORIS and ComfyUI share; alpha is always written."""
    norm = layer.kind == "diff" and layer.tensors.get("weight", torch.zeros(1, 1)).ndim == 1
    for name, value in layer.tensors.items():
        if name in ("magnitude", "base_magnitude"):
            yield "dora_scale", _lengths(value, layer)
        elif name == "bias" and layer.kind == "lora":
            bias = layer.bias()
            assert bias is not None
            yield "diff_b", bias
        elif norm:
            yield {"weight": "w_norm", "bias": "b_norm"}[name], value
        else:
            yield KEYS[layer.kind][name], value
    alpha = layer.alpha if layer.alpha is not None else layer.rank
    if alpha is None and layer.kind == "lokr":  # of two whole factors: it means nothing, and LyCORIS looks for it
        alpha = 1.0
    if alpha is not None and layer.kind not in ("diff", "ia3"):
        yield "alpha", torch.tensor(float(alpha))


def _lengths(value: Tensor, layer: Layer) -> Tensor:
    """DoRA's lengths as LyCORIS keeps them: [out, 1, ...] by rows, [1, in, ...] by columns."""
    if value.ndim > 1 and value.shape[0] == 1:
        return value
    axes = len(weight_shape(layer))
    return value.reshape(-1, *[1] * (axes - 1))
