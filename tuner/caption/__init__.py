"""Automatic captions: what can look at pictures, videos or sound and say what is there. Loads no model by itself."""

from __future__ import annotations

import importlib

from .captioner import PURPOSES, Asked, Captioner, Said, Subject

__all__ = ["NAMED", "PURPOSES", "Asked", "Captioner", "Said", "Subject", "build"]

NAMED = {"qwen": "Qwen/Qwen3-VL-2B-Instruct", "florence": "florence-community/Florence-2-base"}
"""Short name → Hub id. `basic` needs no model; any other name is a Hub id or a model folder."""


def build(model: str) -> Captioner:
    """The captioner of a name, not loaded yet. Raises `UserError` for what is no model that can caption."""
    if model == "basic":
        return importlib.import_module(f"{__name__}.basic").Basic()
    models = importlib.import_module(f"{__name__}.models")
    target = NAMED.get(model, model)
    config = models.config_of(target)
    module, name = ("vision", "Vision") if models.sees(config) else ("audio", "Audio")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)(target, config)
