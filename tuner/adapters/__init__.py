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
from ..recipe import AdapterSpec, ControlSpec, FullSpec, LoraSpec, LycorisSpec, Model, PeftSpec, Recipe
from ..source import Source
from ..types import Parts

if TYPE_CHECKING:
    from .text import TextEncoders, WithText


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
    "lora": Kind(
        "LoRA",
        LoraSpec,
        {
            "DoRA": {"dora": True},
            "rsLoRA": {"rslora": True},
            "PiSSA": {"init": "pissa"},
            "OLoRA": {"init": "olora"},
            "text encoders": {"text": {}},
        },
    ),
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
            "text encoders": {"text": {}},
        },
    ),
    "full": Kind("Full rank", FullSpec),
    "peft": Kind(
        "Other kinds of peft",
        PeftSpec,
        {"IA3": {"algorithm": "ia3"}, "MiSS": {"algorithm": "miss"}, "HRA": {"algorithm": "hra"}},
    ),
    "controlnet": Kind("ControlNet", ControlSpec, {"Control LoRA": {"form": "lora"}}),
}


def _module(kind: str) -> Any:
    return importlib.import_module(f"{__name__}.{kind}")


def build(spec: AdapterSpec, family: Family, parts: Parts) -> Adapter:
    """Attach the adapter that the recipe asks for to the loaded denoiser; loads only its module."""
    return _module(spec.kind).build(spec, family, parts)


def begin(adapter: Adapter, spec: AdapterSpec, family: Family, source: Source) -> None:
    """Give a fresh adapter the values of the one from which the recipe goes on, if it names one.

    adapter: the denoiser's, or what `with_text` made, of which the text encoders' part is meant.
    """
    if isinstance(spec, LoraSpec | LycorisSpec) and spec.start:
        filling: Any = adapter
        filling.begin(spec, family, source)


def refuses(family: Family, recipe: Recipe) -> str | None:
    """A sentence for the user when this family cannot be trained as `recipe.adapter` asks, or its settings contradict
    each other."""
    text = getattr(recipe.adapter, "text", None)
    if text is not None and not family.trainable_text:
        return (
            f"adapter.text is set, but {family.name} trains without its text encoders ({family.encoders}): captions "
            "are cached, and no other tool reads such adapters; remove it."
        )
    if text is not None and text.frozen:
        if getattr(recipe.adapter, "start", None) is None:
            return (
                "adapter.text.frozen holds the text encoders' part of adapter.start, which is empty; remove "
                "adapter.text.frozen to train them, or adapter.text to leave them as they are."
            )
        if idle := [k for k in ("lr", "until") if getattr(text, k) is not None]:
            return f"adapter.text.{idle[0]} has no meaning with adapter.text.frozen; remove one of them."
    return _module(recipe.adapter.kind).refuses(family, recipe)


def refused(family: Family) -> dict[tuple[str, str], str]:
    """Everything of the table that this family cannot do: (kind, title of the variant or "") → the reason."""
    found = {}
    for kind, about in KINDS.items():
        for title, settings in {"": {}, **about.variants}.items():
            asked = {"kind": kind, **settings}
            recipe = Recipe.model_validate(
                {"family": family.name, "source": "any", "adapter": asked, "data": [{"path": "any"}]}
            )
            if reason := refuses(family, recipe):
                found[kind, title] = reason
    return found


def speaking(family: Family, parts: Parts) -> TextEncoders:
    """The text encoders without an adapter of their own, to tell captions with what is put over them.

    parts: what `Family.retelling_parts` names.
    """
    return importlib.import_module(f"{__name__}.text").TextEncoders(family, parts, {}, 0)


def with_text(inner: Adapter, spec: LoraSpec | LycorisSpec, family: Family, parts: Parts, stop: int) -> WithText:
    """The denoiser's adapter with one on the text encoders beside it; loads its module.

    parts: what `Family.retelling_parts` names. stop: the step from which on they stand still.
    """
    return importlib.import_module(f"{__name__}.text").build(inner, spec, family, parts, stop)
