"""The model that a file's names are read against: its modules and their shapes, its weights only when asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import families
from ..errors import UserError
from ..family import Family
from ..formats import dialects
from ..formats import file as opened
from ..formats.layers import Contents, Layer
from ..formats.places import Places, shapes
from ..libraries import diffusers
from ..source import Source
from .extract import CLIPS
from .weights import Weights


@dataclass(frozen=True)
class Model:
    """One base model of a family. given: whether the user named it, so that its weights may be read."""

    family: Family
    source: Source
    given: bool

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        """Component → its network without weights, the denoiser first."""
        self.family.accept(self.source)
        names = self.family.named(self.source.config(self.family.denoiser))
        text = [p for p, e in self.source.index.items() if p in names.text or (isinstance(e, list) and e[-1] in CLIPS)]
        return {p: self.source.outline(p) for p in (self.family.denoiser, *text) if self.source.has(p)}

    @cached_property
    def places(self) -> Places:
        """All names of the model's modules."""
        names = self.family.named(self.source.config(self.family.denoiser))
        return Places(names, {part: shapes(network) for part, network in self.networks.items()})

    @cached_property
    def _weights(self) -> dict[str, Weights]:
        return {}

    def weight(self, part: str, module: str) -> Tensor | None:
        """A module's weight, None where the user named no model."""
        if not self.given:
            return None
        if part not in self._weights:
            self._weights[part] = Weights(self.source.component(part))
        return self._weights[part].of(module)

    def base(self, layer: Layer) -> Tensor | None:
        """The weight that a layer changes."""
        return self.weight(layer.part, layer.module)

    @property
    def pipeline(self) -> Any:
        """The family's official pipeline class."""
        return getattr(diffusers, self.family.pipeline)

    def read(self, path: Path) -> Contents:
        """An adapter file of this model. Raises `UserError` when nothing in it is of this model."""
        found = dialects.understood(opened.read(path), self.places)
        return dialects.matched(found, path, f"{self.family.title} (family {self.family.name})")


def choose(family: str | None, model: str | None, file: Path | None = None) -> Model:
    """The model to read names against. family or model may be missing: the one tells the other, a file tells both.

    Without a model, the first of the family's own is taken, of which nothing but the configuration is fetched.
    Raises `UserError` when several families fit, or none.
    """
    if model is not None:
        name = family or _only(of_source(model), f"The model {model}", "--family")
        made = families.build(name, {})
        source = Source(model, made.sources)
        made.accept(source)
        return Model(made, source, True)
    if family is None:
        if file is None:
            raise UserError("Give --model, or --family.")
        family = _only(fits(opened.read(file)), f"{file}", "--family (and --model)")
    made = families.build(family, {})
    return Model(made, Source(next(iter(made.sources)), made.sources), False)


def of_source(model: str) -> list[str]:
    """The families that take a model folder or Hub id."""
    source, found = Source(model, {}), []
    for name in families.names():
        cls = families.get(name)
        for task in cls.pipelines:
            try:
                families.build(name, {}, task).accept(source)
            except UserError:
                continue
            found.append(name)
            break
    return found


def _only(found: list[str], what: str, option: str) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{what} may be of {', '.join(found)}; say which with {option}.")
    raise UserError(
        f"{what} is of no family that is known here; name it with {option} ({', '.join(families.names())})."
    )


def fits(file: opened.File) -> list[str]:
    """The families that an adapter file may be of: what its header says, else those that know all names of its modules.

    Shapes cannot be told apart without a model, so that related families are all listed.
    """
    said = file.metadata.get("modelspec.architecture", "").lower().removesuffix("/lora")
    version = file.metadata.get("ss_base_model_version", "")
    told, known = [], []
    entries, _ = dialects.grouped(file.tensors)
    names = [(NATIVE.match(n) is not None, bare) for n in entries if (bare := _bare(n))]
    for family in families.names():
        cls = families.get(family)
        calls = {a.lower().removesuffix("/lora") for a in (cls.names.architecture, *cls.names.aliases) if a}
        if (said and said in calls) or (version and version == cls.names.version):
            told.append(family)
        if names and _knows(cls, names):
            known.append(family)
    return told or known


NATIVE = re.compile(r"(model\.)?diffusion_model\.")
"""Stands before names of the original network alone."""
TEXT = re.compile(r"(lycoris_text_encoder|lora_te\d?_|text_encoders?[._\d]|lora_te\d?\b)")
PREFIX = re.compile(
    r"^(base_model\.model\.)?(diffusion_model\.|model\.diffusion_model\.|transformer\.|unet\.|prior\.|lora_unet_|"
    r"lora_transformer_|lora_prior_unet_|lycoris_)?"
)


def _bare(name: str) -> str:
    """A module's name without what stands before it; "" for those of text encoders."""
    return "" if TEXT.match(name) else PREFIX.sub("", name)


def _knows(cls: type[Family], names: list[tuple[bool, str]]) -> bool:
    """Whether each name (whether it must be the original network's, name) is one of this family: of the table of
    originals, of what diffusers made of those, or of the widest preset within the family's blocks."""
    runs = [re.escape(run.path).replace(r"\.", "[._]") for run in cls.blocks]
    inside = re.compile(rf"({'|'.join(runs)})[._]\d+[._].*" if runs else ".*")
    presets = re.compile("|".join(f"(?:{p})" for p in cls.targets.values()).replace(r"\.", "[._]"))
    rows = (*cls.names.native, *cls.names.others)
    there, here = _any(n.name for n in rows), _any(m for n in rows for m in n.modules)

    def known(native: bool, name: str) -> bool:
        if there.fullmatch(name) or (not native and here.fullmatch(name)):
            return True
        return not (native and here.fullmatch(name)) and bool(presets.fullmatch(name) and inside.fullmatch(name))

    return all(known(*one) for one in names)


def _any(names: Iterable[str]) -> re.Pattern[str]:
    """Any of these names, `{}` for a block's number, dotted or flattened."""
    found = [re.escape(n).replace(r"\{\}", r"\d+").replace(r"\.", "[._]") for n in names]
    return re.compile("|".join(found) or "(?!)")
