"""A LyCORIS adapter that goes on from another: the settings that its file has by its tensors, and its values."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import UserError
from ..family import Family
from ..formats import file as opened
from ..formats import write
from ..formats.layers import Layer
from ..recipe import LycorisKnobs, LycorisSpec
from ..source import Source
from . import start

ALGORITHMS = {
    "lora": "locon", "loha": "loha", "lokr": "lokr", "oft": "diag_oft", "boft": "boft", "glora": "glora", "ia3": "ia3",
    "diff": "full",
}  # fmt: skip
"""Kind of a layer → the algorithm that trains it on; DyLoRA's files are plain LoRAs."""
FREE = {"kind", "start", "dropout", "rank_dropout", "module_dropout"}
"""Settings that no file says: they are the recipe's."""


def understood(spec: LycorisSpec, family: Family, source: Source) -> LycorisSpec:
    """The recipe's adapter with what the file of `start` says written out.

    Raises `UserError` when a setting that was given says something else.
    """
    assert spec.start is not None
    path = start.find(spec.start)
    stated = opened.header(path).get(opened.STATED) if path.is_file() else None
    said = (
        json.loads(stated) if stated else _of_layers(layers_of(spec, family, source), source.outline(family.denoiser))
    )
    said = {k: v for k, v in said.items() if k not in FREE}
    filled = LycorisSpec.model_validate({"kind": "lycoris", **said}).filled()
    for key in sorted(spec.model_fields_set - FREE):
        given, own = getattr(spec, key), getattr(filled, key)
        if given not in (None, own):
            shown = own if isinstance(own, str | int | float | None) else "others"
            raise UserError(
                f"adapter.{key} is {given}, but the adapter {spec.start} was trained with {shown}; leave adapter.{key} "
                "out to take that of the file."
            )
    return filled.model_copy(update={k: getattr(spec, k) for k in FREE if k in LycorisSpec.model_fields})


def layers_of(spec: LycorisSpec, family: Family, source: Source) -> list[Layer]:
    """The layers of the file of `start`. Raises `UserError` for what no LyCORIS algorithm trains on."""
    assert spec.start is not None
    path = start.find(spec.start)
    layers = start.layers_of(path, family, source)
    for layer in layers:
        odd = {"base_magnitude": "DoRA as ComfyUI divides it", "biased": "IA3 of peft", "bm": "GLoRA with a core"}
        if found := [told for name, told in odd.items() if name in layer.tensors]:
            raise UserError(
                f"adapter.start: {path} has {found[0]} on {layer.module}, which cannot be trained on as LyCORIS; start "
                "from the run's checkpoint, or its file in another format."
            )
        if "bias" in layer.tensors and layer.kind != "diff":
            raise UserError(f"adapter.start: {path} trains a bias of {layer.module}; go on with adapter.kind=lora.")
    return layers


def _of_layers(layers: Sequence[Layer], network: nn.Module) -> dict[str, Any]:
    """Settings of `LycorisSpec`: those of most layers, and by name where a layer has others."""
    shapes = {x.module: tuple(network.get_submodule(x.module).weight.shape) for x in layers}  # pyrefly: ignore
    kronecker = [_splits(x, shapes[x.module]) for x in layers if x.kind == "lokr"]
    shared = set.intersection(*kronecker) if kronecker else set()
    found = {}
    for layer in layers:
        own = _settings(layer)
        if layer.kind == "lokr":
            splits = shared or _splits(layer, shapes[layer.module])
            if not splits:
                raise UserError(f"adapter.start: no factor of LoKr makes the shapes of {layer.module}; it is damaged.")
            factor, unbalanced = min(splits)
            own |= {"factor": factor or None, "unbalanced": unbalanced}
        found[layer.module] = own
    usual = json.loads(Counter(json.dumps(s, sort_keys=True) for s in found.values()).most_common(1)[0][0])
    others = {name: own for name, own in found.items() if own != usual}
    return {**usual, "targets": list(found), "algorithms": others}


def _settings(layer: Layer) -> dict[str, Any]:
    """Settings of `LycorisKnobs` with which a module has these tensors."""
    t = layer.tensors
    own: dict[str, Any] = {"algorithm": ALGORITHMS[layer.kind]}
    if layer.kind in ("oft", "boft"):
        return own | {"rank": t["blocks"].shape[-1], "rescaled": "rescale" in t, "constraint": layer.alpha or None}
    if layer.kind == "ia3":
        return own | {"on_input": bool(t["on_input"])}
    if layer.kind == "diff":
        return own
    if layer.kind == "lokr":
        own["full_matrix"], own["decompose_both"] = layer.rank is None, "w1_b" in t
    if layer.rank is not None:
        own |= {"rank": layer.rank, "alpha": float(layer.rank if layer.alpha is None else layer.alpha)}
        own["tucker"] = bool({"mid", "t1", "t2"} & set(t))
    if "magnitude" in t:
        by_columns = t["magnitude"].ndim > 1 and t["magnitude"].shape[0] == 1
        own |= {"dora": True, "dora_on": "input" if by_columns else "output"}
    return {k: v for k, v in own.items() if k in LycorisKnobs.model_validate(own).read()}


def _splits(layer: Layer, shape: tuple[int, ...]) -> set[tuple[int, bool]]:
    """(factor, 0 for the even split, and unbalanced) that cut a weight [out, in, ...] into factors of these sizes."""
    factorization = importlib.import_module("lycoris.functional.general").factorization
    t = layer.tensors
    rows, columns = t["w1"].shape if "w1" in t else (t["w1_a"].shape[0], t["w1_b"].shape[1])
    found = set()
    for factor in (0, *range(2, max(rows, columns, 16) + 1)):
        out, into = factorization(shape[0], factor or -1), factorization(shape[1], factor or -1)
        found |= {(factor, swap) for swap in (False, True) if (out[swap], into[0]) == (rows, columns)}
    return found


NAMES = {**write.KEYS, "ia3": {"weight": "weight"}, "diff": {"weight": "weight", "bias": "bias"}}
"""Kind → tensor of a layer → parameter of lycoris-lora's module: mostly what files call it."""


def values(layer: Layer) -> dict[str, Any]:
    """What a module's parameters are by this layer, by their names."""
    names = {**NAMES[layer.kind], "magnitude": "dora_scale"}
    return {names[k]: v for k, v in layer.tensors.items() if k in names}
