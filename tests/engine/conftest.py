"""Tiny checkpoints, built once per session; one thread, because tiny tensors only lose time to more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import build

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny(family, **variation) → folder of that checkpoint, built once and shared: never change its files."""
    built: dict[str, Path] = {}

    def get(family: str, **variation: Any) -> Path:
        key = f"{family} {sorted(variation.items())}"
        if key not in built:
            built[key] = build(family, tmp_path_factory.mktemp(family), **variation)
        return built[key]

    return get
