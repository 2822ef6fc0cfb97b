"""One file per way of training: chosen by the recipe's `adapter.kind`."""

from __future__ import annotations

import importlib

from ..adapter import Adapter
from ..family import Family
from ..recipe import FullSpec, LoraSpec
from ..types import Parts


def build(spec: LoraSpec | FullSpec, family: Family, parts: Parts) -> Adapter:
    """Attach the adapter that the recipe asks for to the loaded denoiser; loads only its module."""
    module = importlib.import_module(f"{__name__}.{spec.kind}")
    return module.build(spec, family, parts)
