"""Where a name in an adapter file leads: found among the network's own modules, never guessed from the string."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..native import Names, Native

Shapes = dict[str, tuple[int, ...]]
"""Full module name → shape of its weight."""
OLD_TEXT = re.compile(r"lora_te(\d?)_")
CLIP_LAYER = "encoder.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Place:
    """What a name stands for: one module of a part, or several whose weights lie in the file's one above the other.

    native: the name outside of diffusers, "" where it is the same. sizes: rows of each module. swapped: whether the
    halves of the rows stand in the other order there. columns: what each row has.
    """

    part: str
    modules: tuple[str, ...]
    sizes: tuple[int, ...]
    columns: tuple[int, ...]
    swapped: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight as the file has it."""
        return sum(self.sizes), *self.columns


def shapes(network: nn.Module) -> Shapes:
    """The modules of a network that have weights, live or on the meta device, quantised or with adapters attached."""
    found: Shapes = {}
    for name, module in network.named_modules():
        base: Any = getattr(module, "base_layer", module)
        own = name.split(".")
        if "base_layer" in own or any(p.startswith(("lora_", "lycoris")) for p in own):
            continue
        weight = getattr(base, "weight", None)
        if not isinstance(weight, torch.Tensor):
            continue
        if isinstance(base, nn.Linear):  # a 4-bit weight is a column of bytes
            found[name] = (base.out_features, base.in_features)
        else:
            found[name] = tuple(weight.shape)
    return found


class Places:
    """Every name by which files may call the modules of one model.

    networks: part → its modules, the denoiser first. Parts that are missing here are not understood.
    """

    def __init__(self, names: Names, networks: Mapping[str, Shapes]) -> None:
        self.names, self.networks = names, dict(networks)
        self.denoiser = next(iter(networks), "")
        self.own = {part: dict(_own(part, table)) for part, table in self.networks.items()}
        table = self.networks.get(self.denoiser, {})
        self.native = dict(_native(self.denoiser, table, names.native))
        self.others = dict(_native(self.denoiser, table, names.others))
        self.text = [part for part in self.networks if part != self.denoiser]

    def comfyui(self) -> dict[str, Place]:
        """Name in the original network → place, each module of the denoiser once."""
        return self._once(self.native)

    def kohya(self) -> dict[str, Place]:
        """Dotted name that kohya-like tools flatten → place, each module of the denoiser once."""
        return self._once({"native": self.native, "others": self.others}.get(self.names.kohya, {}))

    def kohya_lacks(self, name: str) -> bool:
        """Whether kohya's own networks do not load what a file has for this dotted name of theirs."""
        return re.fullmatch(self.names.kohya_lacks, name) is not None

    def lost(self, modules: Iterable[str]) -> str:
        """The first of these modules, by kohya's name, whose adapter its networks leave out; "" for none."""
        changed = set(modules)
        lacking = (n for n, place in self.kohya().items() if self.kohya_lacks(n) and changed & set(place.modules))
        return next(lacking, "")

    def _once(self, table: dict[str, Place]) -> dict[str, Place]:
        """The table with the modules that it leaves out under their own names."""
        listed: set[str] = set()
        kept = {}
        for name, place in table.items():
            if not listed & set(place.modules):
                kept[name] = place
                listed |= set(place.modules)
        return kept | {name: place for name, place in self.own.get(self.denoiser, {}).items() if name not in listed}

    @cached_property
    def _flat(self) -> tuple[dict[str, dict[str, Place]], list[dict[str, Place]]]:
        own = {part: flattened(table) for part, table in self.own.items()}
        return own, [flattened(self.native), flattened(self.others)]

    def candidates(self, name: str) -> tuple[list[Place], str]:
        """What a module's name in a file may stand for, the likeliest first, and how it is written there."""
        bare = name.removeprefix("base_model.model.").replace(".processor.", ".")
        if found := self._flat_name(bare):
            return found, "kohya" if bare.startswith("lora_") else "lycoris"
        for prefix in dict.fromkeys((self.names.prefix, "model.diffusion_model.", "diffusion_model.")):
            if prefix and bare.startswith(prefix):
                return self._dotted(bare.removeprefix(prefix), native=True), "comfyui"
        for part in self.text:
            for prefix in (f"{part}.", self.names.text.get(part, ("", ""))[1]):
                if prefix and bare.startswith(prefix):
                    found = _of(self.own[part], text_names(bare.removeprefix(prefix)))
                    return found, "comfyui" if bare.startswith("text_encoders.") else "diffusers"
        for prefix in (f"{self.denoiser}.", "transformer.", "unet.", "prior.", ""):
            if bare.startswith(prefix) and (found := self._dotted(bare.removeprefix(prefix), native=False)):
                own = found[0].modules[0] in (bare.removeprefix(prefix), f"{bare.removeprefix(prefix)}.0")
                return found, "peft" if name.startswith(
                    "base_model.model."
                ) and own else "diffusers" if own else "comfyui"
        return [], ""

    def _dotted(self, name: str, native: bool) -> list[Place]:
        own = self.own.get(self.denoiser, {})
        order = (self.native, self.others, own) if native else (own, self.native, self.others)
        # diffusers' old attention processors call the output projection without its number
        return [table[n] for table in order for n in (name, f"{name}.0") if n in table]

    def _flat_name(self, name: str) -> list[Place]:
        own, native = self._flat
        for prefix in ("lora_unet_", "lora_transformer_", "lora_prior_unet_", "lycoris_"):
            if name.startswith(prefix):
                tables = [own.get(self.denoiser, {}), *native]
                if self.names.kohya in ("native", "others") and prefix == "lora_unet_":
                    tables.reverse()
                rest = name.removeprefix(prefix)
                found = [t[rest] for t in tables if rest in t]
                return found or (self._lycoris_text(rest) if prefix == "lycoris_" else [])
        if match := OLD_TEXT.match(name):
            rest = name[match.end() :]
            return [p for part in self._text_parts(match) for p in _of(own[part], text_names(rest, "_"))]
        return []

    def _lycoris_text(self, rest: str) -> list[Place]:
        """A text encoder's module, behind the encoder's name or, in files of one network, without it."""
        own, found = self._flat[0], []
        for part in self.text:
            for name in (rest.removeprefix(f"{part}_") if rest.startswith(f"{part}_") else "", rest):
                found += _of(own[part], text_names(name, "_"))
        return found

    def _text_parts(self, match: re.Match[str]) -> list[str]:
        """Whose names follow `lora_te_`, `lora_te1_` ...: as the family says, then by number.

        FLUX.1's T5 is the third for kohya's tools and the second for OneTrainer; which modules it has settles it.
        """
        said = [p for p in self.text if self.names.text.get(p, ("", ""))[0] == match.group()]
        said += [p for p in self.text if self.names.text_aliases.get(match.group()) == p]
        number = match.group(1) or "1"
        counted = "text_encoder" if number == "1" else f"text_encoder_{number}"
        last = ["text_encoder_2"] if number == "3" and "text_encoder_3" not in self.text else []
        return list(dict.fromkeys([*said, *(p for p in (counted, *last) if p in self.text)]))


def flattened(table: Mapping[str, Place]) -> dict[str, Place]:
    """The same places under names without dots, as kohya-like tools and LyCORIS write them."""
    return {name.replace(".", "_"): place for name, place in table.items()}


def text_names(name: str, dot: str = ".") -> list[str]:
    """A text encoder's module with and without the `text_model` that releases of transformers add or leave out."""
    prefix = f"text_model{dot}"
    return [name, name.removeprefix(prefix) if name.startswith(prefix) else prefix + name]


def published(name: str, table: Shapes) -> str:
    """How files call a text encoder's module: CLIP's begin with `text_model.` whatever the installed library says."""
    return f"text_model.{name}" if CLIP_LAYER in table and not name.startswith("text_projection") else name


def _of(table: Mapping[str, Place], names: list[str]) -> list[Place]:
    return [table[n] for n in names if n in table]


def _own(part: str, table: Shapes) -> Iterator[tuple[str, Place]]:
    for name, shape in table.items():
        yield name, Place(part, (name,), shape[:1], shape[1:])


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(r"(\d+)".join(re.escape(piece) for piece in name.split("{}")))


def _native(part: str, table: Shapes, natives: tuple[Native, ...]) -> Iterator[tuple[str, Place]]:
    for native in natives:
        first = _pattern(native.modules[0])
        for match in filter(None, map(first.fullmatch, table)):
            modules = tuple(_filled(m, match.groups()) for m in native.modules)
            if all(m in table for m in modules):
                sizes, columns = tuple(table[m][0] for m in modules), table[modules[0]][1:]
                swapped = bool(columns) and native.swaps(sum(sizes), columns[0])
                yield _filled(native.name, match.groups()), Place(part, modules, sizes, columns, swapped)


def _filled(name: str, numbers: tuple[str | Any, ...]) -> str:
    for number in numbers:
        name = name.replace("{}", number, 1)
    return name
