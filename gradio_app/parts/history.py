"""The steps of a run in columns: a run of a million steps takes some twenty megabytes here, not a gigabyte."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import deque
from typing import Any

Point = tuple[float, float]


class Steps:
    """What the journal said of each step. Of most only the number, the loss and the rate are kept.

    last: the newest event whole, {} before there is one.
    """

    def __init__(self) -> None:
        self.numbers, self._losses, self._rates = array("q"), array("d"), array("d")
        self._seconds: deque[float] = deque(maxlen=40)
        self.last: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, event: dict[str, Any]) -> None:
        """One more step; steps come in order."""
        self.numbers.append(int(event["step"]))
        self._losses.append(_number(event.get("loss")))
        self._rates.append(_number(event.get("lr")))
        self._seconds.append(_number(event.get("seconds")))
        self.last = event

    def forget(self, step: int) -> None:
        """Leave out what was done after this step."""
        kept = bisect_right(self.numbers, step)
        if kept < len(self):
            for column in (self.numbers, self._losses, self._rates):
                del column[kept:]
            self.last = {"step": self.numbers[-1], "loss": self._losses[-1], "lr": self._rates[-1]} if kept else {}

    def losses(self) -> list[Point]:
        """(step, loss) of all steps whose loss is a number."""
        return [(x, y) for x, y in zip(self.numbers, self._losses, strict=True) if math.isfinite(y)]

    def rate(self, step: int) -> float | None:
        """The learning rate of a step."""
        at = bisect_right(self.numbers, step) - 1
        return self._rates[at] if at >= 0 and math.isfinite(self._rates[at]) else None

    def seconds(self) -> list[float]:
        """How long the last steps took."""
        return [s for s in self._seconds if s > 0]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
