"""diffusers and peft, imported without what they would load along on every start.

Both import bitsandbytes whenever it is installed, for quantised bases: more than a CPU-second, half of torch's compiler
and a line of noise, even for a run that quantises nothing. While they look for it, it is hidden from them; whoever
names a bitsandbytes optimiser in a recipe still gets it, and for a base that it quantises `bitsandbytes()` shows it to
peft again.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Make a package look as if it were not installed; no effect once it is loaded."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # pyrefly: ignore[unsupported-operation]
    try:
        yield
    finally:
        del sys.modules[name]


with _hidden("bitsandbytes"):
    diffusers = importlib.import_module("diffusers")
    peft = importlib.import_module("peft")
    lookups = importlib.import_module("peft.import_utils")
    lookups.is_bnb_available(), lookups.is_bnb_4bit_available()  # peft remembers what it found


def bitsandbytes() -> Any:
    """The library itself, from now on known to peft, which needs it for adapters on its layers."""
    log = logging.getLogger("bitsandbytes")
    level = log.level
    log.setLevel(logging.ERROR)  # it would recommend a package that fetches kernels from the Hub
    try:
        bnb = importlib.import_module("bitsandbytes")
        importlib.import_module("bitsandbytes.backends")
    finally:
        log.setLevel(level)
    lookups.is_bnb_available.cache_clear()
    lookups.is_bnb_4bit_available.cache_clear()
    return bnb
