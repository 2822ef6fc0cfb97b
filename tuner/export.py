"""The result of training as files: each written, opened again as its reader does, and compared with what trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from .adapter import Layered, Written
from .errors import UserError
from .family import Family
from .formats import metadata, verify, write
from .formats.apply import plain_weight
from .formats.layers import Layer
from .formats.places import Places, shapes, text_names
from .native import Names
from .source import Source
from .types import Parts

FORMATS = ("diffusers", "comfyui", "kohya", "lycoris")


def _silent(text: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Wish:
    """What a user asked for. name: of the files. formats: none means all that the family has. facts: what is known of
    the training, for the header. tell: gets a sentence for each format that was left out."""

    name: str = "adapter"
    formats: tuple[str, ...] = ()
    precision: str = "fp32"
    metadata: metadata.Choice = "full"
    facts: Mapping[str, str] = field(default_factory=dict)
    tell: Callable[[str], None] = _silent


@dataclass(frozen=True)
class Order:
    """What is to be written, and where. folder: `export`. networks: part → network, denoiser first.

    pipeline, layout: diffusers' class and who reads an adapter for it. lycoris: who loads LyCORIS' own format of this
    adapter rightly.
    """

    folder: Path
    names: Names
    networks: Mapping[str, nn.Module]
    pipeline: Any
    layout: write.Layout
    wish: Wish = Wish()
    lycoris: tuple[str, ...] = ("lycoris-lora",)

    def weight(self, part: str, module: str) -> Tensor | None:
        """The base's weight of a module as numbers."""
        found: Any = self.networks[part].get_submodule(module)
        return plain_weight(getattr(found, "base_layer", found))


def refused(names: Names, format: str) -> str:
    """Why adapters of this family are not written in this format, "" where they are."""
    if format == "comfyui" and (not names.comfy or names == Names()):
        return "ComfyUI has no network of this family"
    if format == "kohya" and not names.kohya:
        return "kohya-like tools do not know this family"
    return ""


def wanted(order: Order, layers: Sequence[Layer]) -> list[str]:
    """The formats that are written; each that the family has but this adapter cannot take is told."""
    if order.wish.formats:
        return [f for f in FORMATS if f in order.wish.formats]
    possible = []
    strange = [layer for layer in layers if not write.plain(layer)]
    mixed = len({"magnitude" in layer.tensors for layer in layers}) > 1
    if strange or mixed:
        kind = f"{strange[0].kind} on {strange[0].module}" if strange else "DoRA on some layers and not on others"
        order.wish.tell(
            f"No file for diffusers was written: it loads no {kind}. LyCORIS' own format stands in its place."
        )
    else:
        possible.append("diffusers")
    parts = {layer.part for layer in layers}
    biased = _biased(layers)
    for format, side in (("comfyui", 1), ("kohya", 0)):
        if refused(order.names, format):
            continue
        if format == "kohya" and biased:
            order.wish.tell(f"No file for kohya was written: its tools load no bias, such as of {biased}.")
            continue
        homeless = [p for p in parts if p in TEXT and not order.names.text.get(p, ("", ""))[side]]
        if homeless:
            order.wish.tell(f"No file for {format} was written: it has no place for an adapter of {homeless[0]}.")
        else:
            possible.append(format)
    return possible if "diffusers" in possible else [*possible, "lycoris"]


def _biased(layers: Sequence[Layer]) -> str:
    """The first module whose LoRA has a bias, which only diffusers and ComfyUI load; "" for none."""
    return next((layer.module for layer in layers if layer.kind == "lora" and "bias" in layer.tensors), "")


def kohya_reads(layers: Sequence[Layer], places: Places) -> bool:
    """Whether kohya's own networks read all of it: plain factors, in the blocks. LyCORIS within them reads the rest."""
    plain = all(layer.kind == "lora" and set(layer.tensors) == {"down", "up"} for layer in layers)
    return plain and not places.lost(layer.module for layer in layers if layer.part == places.denoiser)


TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")


def adapter(
    adapter: Layered, family: Family, source: Source, parts: Parts, folder: Path, wish: Wish = Wish()
) -> list[Written]:
    """Write an adapter below `folder` as it stands; the main file first. See `files`."""
    pipeline, network = type(family.pipe(parts)), parts.network
    layers = adapter.layers()
    # the second expert of a model is written under the first one's name
    own = layers[0].part if parts.denoiser.startswith(layers[0].part) else parts.denoiser
    networks = {own: network, **getattr(adapter, "encoders", {})}
    lycoris = adapter.loads_in() if hasattr(adapter, "loads_in") else ("lycoris-lora",)
    names, form = family.named(source.config(family.denoiser)), write.layout(pipeline, network)
    return files(layers, Order(folder, names, networks, pipeline, form, wish, lycoris))


def files(layers: Sequence[Layer], order: Order) -> list[Written]:
    """Write the adapter in every wanted format below `order.folder`; the main file first.

    A file that does not load as it was trained stays, with the list of what is wrong. Raises `UserError` for a format
    that cannot hold this adapter.
    """
    if not layers:
        raise AssertionError("an adapter without layers")
    if biased := [layer for layer in layers if "biased" in layer.tensors]:
        raise UserError(
            f"{biased[0].part}.{biased[0].module} is of peft's IA3, which scales biases too; only peft's own file says "
            "so. Bake it into a model with `tuner lora bake` instead."
        )
    places = Places(order.names, {part: shapes(network) for part, network in order.networks.items()})
    layers = [_own_name(layer, places) for layer in layers]
    against = verify.Check(layers, places, order.weight, order.wish.precision)
    order.folder.mkdir(parents=True, exist_ok=True)
    return [_file(layers, order, format, against) for format in wanted(order, layers)]


def _own_name(layer: Layer, places: Places) -> Layer:
    """Text encoders' layers by the names that the installed library gives their modules."""
    table = places.networks[layer.part]
    if layer.module in table:
        return layer
    own = [name for name in text_names(layer.module) if name in table]
    return replace(layer, module=own[0]) if own else layer


def _file(layers: Sequence[Layer], order: Order, format: str, against: verify.Check) -> Written:
    if format == "diffusers":
        sheet = write.diffusers(layers, order.layout, against.places)
        name = write.PEFT_FILE if order.layout == "peft" else write.FILE
    else:
        sheet = write.WRITERS[format](layers, against.places, order.weight)
        name = f"{order.wish.name}.safetensors"
    tensors = write.exact(sheet.tensors, order.wish.precision)
    told = metadata.header(tensors, layers, order.names, order.wish.facts, order.wish.metadata, format)
    target, partial = order.folder / format, order.folder / f".partial-{format}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(tensors, partial / name, {"format": "pt", **told, **sheet.metadata})
    if sheet.config is not None:
        text = json.dumps(sheet.config, indent=2, default=str)
        (partial / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    problems = verify.check(partial / name, format, against, order.pipeline, order.layout)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    readers = {**verify.TARGETS, "lycoris": order.lycoris}[format]
    if format == "kohya" and not kohya_reads(layers, against.places):
        readers = order.lycoris
    if format in ("kohya", "lycoris") and _biased(layers):
        readers = ()
    if format == "diffusers" and order.layout == "peft":
        readers = ("PEFT",)
    return Written(target / name, format, () if problems else readers, tuple(problems))


def checked(formats: Sequence[str], names: Names) -> list[str]:
    """A sentence for each format in `formats` that this family does not have."""
    return [f"save.formats names {f}, but {reason}; remove it." for f in formats if (reason := refused(names, f))]
