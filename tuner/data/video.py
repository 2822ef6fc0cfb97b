"""Videos (being written)."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write(path: Path, frames: np.ndarray, fps: float, sound: np.ndarray | None = None, rate: int = 0) -> None:
    """Write."""
    raise NotImplementedError
