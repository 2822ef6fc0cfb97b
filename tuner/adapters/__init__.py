"""One file per way of training: chosen by the recipe's `adapter.kind`.

A file offers `build(spec, family, parts) -> Adapter`, `refuses(family, recipe) -> str | None` (a sentence where this
family or recipe cannot be trained so) and its line in `KINDS`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..adapter import Adapter
from ..family import Family
from ..recipe import AdapterSpec, FullSpec, LoraSpec, LycorisSpec, Model, Recipe
from ..types import Parts

if TYPE_CHECKING:
    from .text import WithText


@dataclass(frozen=True)
class Kind:
    """A way of training. settings: its part of the recipe, whose first line of documentation says what it is.

    variants: title → settings of `adapter` that are worth a line of their own in the table; {} stands for the plain
    form, which every kind has.
    """

    title: str
    settings: type[Model]
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "lora": Kind("LoRA", LoraSpec),
    "lycoris": Kind(
        "LyCORIS",
        LycorisSpec,
        {
            "LoCon": {"algorithm": "locon"},
            "LoHa": {"algorithm": "loha"},
            "LoKr": {"algorithm": "lokr"},
            "DyLoRA": {"algorithm": "dylora"},
            "IA3": {"algorithm": "ia3"},
            "diag-OFT": {"algorithm": "diag_oft"},
            "BOFT": {"algorithm": "boft"},
            "GLoRA": {"algorithm": "glora"},
            "full difference": {"algorithm": "full"},
        },
    ),
    "full": Kind("Full rank", FullSpec),
}


def _module(kind: str) -> Any:
    return importlib.import_module(f"{__name__}.{kind}")


def build(spec: AdapterSpec, family: Family, parts: Parts) -> Adapter:
    """Attach the adapter that the recipe asks for to the loaded denoiser; loads only its module."""
    return _module(spec.kind).build(spec, family, parts)


def refuses(family: Family, recipe: Recipe) -> str | None:
    """A sentence for the user when this family cannot be trained as `recipe.adapter` asks, or its settings contradict
    each other."""
    return _module(recipe.adapter.kind).refuses(family, recipe)


def refused(family: Family) -> dict[str, str]:
    """Everything of the table that this family cannot do: kind, or title of a variant → the reason."""
    found = {}
    for kind, about in KINDS.items():
        for title, settings in {kind: {}, **about.variants}.items():
            asked = {"kind": kind, **settings}
            recipe = Recipe.model_validate(
                {"family": family.name, "source": "any", "adapter": asked, "data": [{"path": "any"}]}
            )
            if reason := refuses(family, recipe):
                found[title] = reason
    return found


def with_text(inner: Adapter, spec: LoraSpec, family: Family, parts: Parts, stop: int) -> WithText:
    """The denoiser's adapter with one on the text encoders beside it; loads its module.

    parts: what `Family.retelling_parts` names. stop: the step from which on they stand still.
    """
    return importlib.import_module(f"{__name__}.text").build(inner, spec, family, parts, stop)
