"""Tiny checkpoints and made-up adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.engine.conftest import tiny

__all__ = ["tiny"]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """checkpoints(family) → its tiny checkpoint, of any family, built once: never change its files."""
    from tests.families.cases import all_cases

    built: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in built:
            built[family] = tmp_path_factory.mktemp(family)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                all_cases()[family].build(built[family])
        return built[family]

    return get
