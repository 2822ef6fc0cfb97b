"""Sound (being written)."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write."""
    raise NotImplementedError
