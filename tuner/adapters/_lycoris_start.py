"""A LyCORIS adapter that goes on from another: the settings that its file has by its tensors, and its values."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..family import Family
from ..formats import file as opened
from ..formats import places, write
from ..formats.layers import Layer
from ..recipe import LycorisKnobs, LycorisSpec, LycorisTextSpec
from ..source import Source
from . import start

ALGORITHMS = {
    "lora": "locon", "loha": "loha", "lokr": "lokr", "oft": "diag_oft", "boft": "boft", "glora": "glora", "ia3": "ia3",
    "diff": "full",
}  # fmt: skip
"""Kind of a layer → the algorithm that trains it on; DyLoRA's files are plain LoRAs."""
FREE = {"kind", "start", "dropout", "rank_dropout", "module_dropout", "text"}
"""Settings that no file says, or that are compared by themselves."""


def understood(spec: LycorisSpec, family: Family, source: Source) -> LycorisSpec:
    """The recipe's adapter with what the file of `start` says written out, of the text encoders too.

    Raises `UserError` when a setting that was given says something else.
    """
    assert spec.start is not None
    path = start.find(spec.start)
    stated = opened.header(path).get(opened.STATED) if path.is_file() else None
    if stated:
        whole = LycorisSpec.model_validate(json.loads(stated)).filled()
        said = whole.model_copy(update={"text": _checkpointed(whole, path, family, source)})
    else:
        said = _of_layers(layers_of(spec, family, source), spec, family, source)
    for key in sorted(spec.model_fields_set - FREE):
        given, own = getattr(spec, key), getattr(said, key)
        if given not in (None, own):
            raise UserError(_other(f"adapter.{key}", given, own, spec.start))
    text = _text(spec, said.text, family, source)
    free = {k: getattr(spec, k) for k in FREE if k in LycorisSpec.model_fields}
    return said.model_copy(update={**free, "text": text})


def _other(where: str, given: Any, own: Any, path: str) -> str:
    shown = own if isinstance(own, str | int | float | None) else "others"
    return (
        f"{where} is {given}, but the adapter {path} was trained with {shown}; leave {where} out to take that of the "
        "file."
    )


def _text(spec: LycorisSpec, said: LycorisTextSpec | None, family: Family, source: Source) -> LycorisTextSpec | None:
    """The recipe's settings of the text encoders, with what the file says of them written out."""
    if said is None:
        return spec.text
    given, told = spec.text or LycorisTextSpec(frozen=True), {}
    for key in ("rank", "alpha", "algorithms", "targets"):
        asked, own = getattr(given, key), getattr(said, key)
        if asked not in (None, {}, own) and not (key == "targets" and set(own) <= set(asked)):
            raise UserError(_other(f"adapter.text.{key}", asked, own, str(spec.start)))
        told[key] = own if asked in (None, {}) else asked
    given = given.model_copy(update={**told, "parts": given.parts or said.parts})
    more = start.further(given, said.parts or (), family, source)
    return given.model_copy(update={"targets": [*(given.targets or ()), *more]})


def _checkpointed(spec: LycorisSpec, path: Path, family: Family, source: Source) -> LycorisTextSpec | None:
    """What a checkpoint says of the text encoders: its settings, and the layers that it has."""
    if spec.text is None:
        return None
    keys, own = list(opened.read(path).tensors), spec.of_text()
    names = [
        name
        for part in family.trainable_text
        if any(k.startswith(f"{part}.") for k in keys)
        for name in (start.text_name(part, module) for module in places.shapes(source.outline(part)))
        if any(k.startswith(f"{name}.") for k in keys)
    ]
    parts = [p for p in family.trainable_text if any(n.startswith(f"{p}.") for n in names)]
    return LycorisTextSpec(rank=own.rank, alpha=own.alpha, algorithms=spec.text.algorithms, targets=names, parts=parts)


def layers_of(spec: LycorisSpec, family: Family, source: Source) -> list[Layer]:
    """The layers of the file of `start`. Raises `UserError` for what no LyCORIS algorithm trains on."""
    assert spec.start is not None
    path = start.find(spec.start)
    layers = start.joined(start.layers_of(path, family, source))
    for layer in layers:
        if layer.kind not in ALGORITHMS:
            raise UserError(
                f"adapter.start: {path} is of the kind {layer.kind}, which no LyCORIS algorithm trains on; bake it "
                "into a model with `tuner lora bake`, and start from that."
            )
        odd = {"biased": "IA3 of peft", "bm": "GLoRA with a core"}
        if found := [told for name, told in odd.items() if name in layer.tensors]:
            raise UserError(
                f"adapter.start: {path} has {found[0]} on {layer.module}, which cannot be trained on as LyCORIS; start "
                "from the run's checkpoint, or its file in another format."
            )
        if "bias" in layer.tensors and layer.kind != "diff":
            raise UserError(f"adapter.start: {path} trains a bias of {layer.module}; go on with adapter.kind=lora.")
    return layers


def _of_layers(layers: Sequence[Layer], spec: LycorisSpec, family: Family, source: Source) -> LycorisSpec:
    """Settings of `LycorisSpec`: those of most layers, and by name where a layer has others.

    spec: what holds for the denoiser where the file says nothing of it.
    """
    text = start.of_text(layers, family)
    own = [layer for layer in layers if layer.part not in family.trainable_text]
    whole = spec.filled()
    if own:
        usual, others, names = _found({x.module: x for x in own}, {family.denoiser: own}, source)
        whole = LycorisSpec.model_validate({**usual, "targets": names, "algorithms": others}).filled()
    whole = whole.model_copy(update={"text": None})
    if not text:
        return whole
    parts = {part: [x for x in text if x.part == part] for part in start.parts_of(text, family)}
    usual, others, names = _found({start.text_name(x.part, x.module): x for x in text}, parts, source)
    told = {"parts": list(parts), "targets": names, "rank": usual.get("rank"), "alpha": usual.get("alpha")}
    base = whole.model_copy(update={"text": LycorisTextSpec.model_validate(told)}).of_text()
    asked = LycorisKnobs.model_validate(usual).filled()
    if any(getattr(base, k) != getattr(asked, k) for k in {"algorithm", *asked.read()} - FREE):
        told |= {"rank": None, "alpha": None}
        others = {**others, "*": usual}
    return whole.model_copy(update={"text": LycorisTextSpec.model_validate({**told, "algorithms": others})})


Found = tuple[dict[str, Any], dict[str, dict[str, Any]], list[str]]


def _found(named: Mapping[str, Layer], parts: Mapping[str, Sequence[Layer]], source: Source) -> Found:
    """(settings of most layers, by name those of the others, all names)."""
    outlines = {part: source.outline(part) for part in parts}
    shapes: dict[int, tuple[int, ...]] = {
        id(x): tuple(outlines[part].get_submodule(x.module).weight.shape)  # pyrefly: ignore
        for part, layers in parts.items()
        for x in layers
    }
    kronecker = [_splits(x, shapes[id(x)]) for x in named.values() if x.kind == "lokr"]
    shared = set.intersection(*kronecker) if kronecker else set()
    found = {}
    for name, layer in named.items():
        own = _settings(layer)
        if layer.kind == "lokr":
            splits = shared or _splits(layer, shapes[id(layer)])
            if not splits:
                raise UserError(f"adapter.start: no factor of LoKr makes the shapes of {name}; it is damaged.")
            factor, unbalanced = min(splits)
            own |= {"factor": factor or None, "unbalanced": unbalanced}
        found[name] = own
    usual = json.loads(Counter(json.dumps(s, sort_keys=True) for s in found.values()).most_common(1)[0][0])
    return usual, {name: own for name, own in found.items() if own != usual}, list(found)


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
    if "base_magnitude" in t:
        own |= {"dora": True, "dora_on": "output"}
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
