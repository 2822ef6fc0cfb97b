"""One file per way of training: chosen by the recipe's `adapter.kind`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ..adapter import Adapter
from ..family import Family
from ..recipe import FullSpec, LoraSpec
from ..types import Parts

if TYPE_CHECKING:
    from .text import WithText


def build(spec: LoraSpec | FullSpec, family: Family, parts: Parts) -> Adapter:
    """Attach the adapter that the recipe asks for to the loaded denoiser; loads only its module."""
    module = importlib.import_module(f"{__name__}.{spec.kind}")
    return module.build(spec, family, parts)


def with_text(inner: Adapter, spec: LoraSpec, family: Family, parts: Parts, stop: int) -> WithText:
    """The denoiser's adapter with one on the text encoders beside it; loads its module.

    parts: what `Family.retelling_parts` names. stop: the step from which on they stand still.
    """
    return importlib.import_module(f"{__name__}.text").build(inner, spec, family, parts, stop)
