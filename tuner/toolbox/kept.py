"""How much of each layer's change a tool kept: the stated error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .lowrank import total


@dataclass(frozen=True)
class Kept:
    """One layer: Frobenius norm of its change as it should be, and of what is missing of it in what was made.

    rank: of what was made, None where it has none.
    """

    part: str
    module: str
    rank: int | None
    size: float
    missing: float

    @property
    def error(self) -> float:
        """The missing share: relative Frobenius error, 0 for a layer that changes nothing and lost nothing."""
        return self.missing / self.size if self.size else float(self.missing > 0)


def summary(layers: Sequence[Kept]) -> dict[str, Any]:
    """The error in all and per layer, as plain values. The worst layer first in people's eyes: `worst`."""
    size, missing = total(k.size for k in layers), total(k.missing for k in layers)
    worst = max(layers, key=lambda k: k.error, default=None)
    ranks = sorted({k.rank for k in layers if k.rank is not None})
    return {
        "error": Kept("", "", None, size, missing).error,
        "norm": size,
        "ranks": [ranks[0], ranks[-1]] if ranks else [],
        "worst": {"layer": f"{worst.part}.{worst.module}", "error": worst.error} if worst else None,
        "layers": [{"layer": f"{k.part}.{k.module}", "rank": k.rank, "norm": k.size, "error": k.error} for k in layers],
    }
