"""An adapter file written in a dialect, opened again as its reader opens it, and compared with what it should hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..formats import metadata, verify, write
from ..formats.layers import Contents, Layer
from . import place
from .kept import Kept
from .metadata import kept
from .model import Model

CODES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
DIALECTS = {"peft": "diffusers", "diffusers, old keys": "diffusers"}
"""Dialects that are read and not written → the one that takes their place."""


@dataclass(frozen=True)
class Order:
    """How a file is to be written. to: diffusers, comfyui, kohya or lycoris. precision: fp32, bf16 or fp16."""

    to: str
    precision: str
    metadata: metadata.Choice = "full"


def dialect(contents: Contents) -> str:
    """The dialect in which what came from a file is written when none is asked for."""
    return DIALECTS.get(contents.dialect, contents.dialect)


def adapter(layers: Sequence[Layer], model: Model, target: Path, order: Order, said: dict[str, str]) -> list[Kept]:
    """Write `target` and return how much of each module's change its reader finds in it.

    said: metadata of what it was made from. Raises `UserError` where the dialect has no place for the layers, and
    `AssertionError` when the file is not read back as it was meant; nothing is left of it then.
    """
    if target.suffix != ".safetensors":
        raise UserError(f"{target} must end in .safetensors; give such a name.")
    if not layers:
        raise UserError("There is nothing to write: no layer is left.")
    network = model.networks[model.family.denoiser]
    layout = write.layout(model.pipeline, network)
    if order.to == "diffusers":
        sheet = write.diffusers(layers, layout, model.places)
    else:
        if order.to == "comfyui" and not model.places.names.comfy:
            raise UserError(f"ComfyUI does not read adapters of {model.family.name}; take --to diffusers.")
        if order.to == "kohya" and not model.places.names.kohya:
            raise UserError(f"kohya-style tools do not know {model.family.name}; take --to diffusers or comfyui.")
        sheet = write.WRITERS[order.to](layers, model.places, model.weight)
    if sheet.config is not None and target.name != write.PEFT_FILE:
        raise UserError(
            f"Only PEFT loads adapters of {model.family.name}, from a folder of their own: {target} must be called "
            f"{write.PEFT_FILE}, or take another dialect with --to."
        )
    tensors = write.exact(sheet.tensors, order.precision)
    facts = kept(said, order.metadata)
    told = metadata.header(tensors, layers, model.places.names, facts, order.metadata, order.to)
    header = {"format": "pt", **told, **sheet.metadata}
    with ExitStack() as stack:
        if sheet.config is not None:  # beside the file, and like it whole or not at all
            beside = stack.enter_context(place.new(target.with_name("adapter_config.json")))
            beside.write_text(json.dumps(sheet.config, indent=2, default=str) + "\n", encoding="utf-8")
        partial = stack.enter_context(place.new(target, sum(v.nbytes for v in tensors.values())))
        save_file(tensors, partial, header)
        against = verify.Check(layers, model.places, model.weight, order.precision)
        if problems := verify.check(partial, order.to, against, model.pipeline, layout):
            raise AssertionError(f"{target} would not be what it should: {'; '.join(problems)}")
        return compared(layers, model.read(partial).layers, model)


def compared(wanted: Sequence[Layer], made: Sequence[Layer], model: Model) -> list[Kept]:
    """How much of each module's change is missing in what was read back."""
    first, second = _changes(wanted, model), _changes(made, model)
    found = []
    for key in dict.fromkeys([*first, *second]):
        a, b = first.get(key), second.get(key)
        if a is None or b is None:
            size = 0.0 if a is None else a.norm().item()
            found.append(Kept(*key, None, size, size if b is None else b.norm().item()))
        else:
            found.append(Kept(*key, None, a.norm().item(), (a - b.reshape(a.shape)).norm().item()))
    return found


def _changes(layers: Sequence[Layer], model: Model) -> dict[tuple[str, str], Tensor]:
    found: dict[tuple[str, str], Any] = {}
    for layer in layers:
        if layer.kind == "diff" and "weight" not in layer.tensors:
            continue
        key = (layer.part, layer.module)
        change = layer.delta(model.base(layer)).double()
        found[key] = change if key not in found else found[key] + change
    return found
