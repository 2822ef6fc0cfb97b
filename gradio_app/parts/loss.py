"""Loss curves made small enough to draw: a smoothed line and the faint points behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Point = tuple[float, float]
T = TypeVar("T")


def smooth(points: Sequence[Point], share: float = 0.04) -> list[Point]:
    """Exponential mean whose memory is a share of the run; unbiased at the start."""
    window = max(2.0, share * len(points))
    keep = 1.0 - 1.0 / window
    total, weight, line = 0.0, 0.0, []
    for x, y in points:
        total = keep * total + y
        weight = keep * weight + 1.0
        line.append((x, total / weight))
    return line


def means(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points, each the mean of a stretch, so that very long runs are smoothed as fast as short ones."""
    if len(points) <= most:
        return list(points)
    out = []
    for i in range(most):
        part = points[i * len(points) // most : (i + 1) * len(points) // most]
        out.append((part[-1][0], sum(y for _, y in part) / len(part)))
    return out


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points; of each stretch the lowest and the highest stay, so that spikes are seen."""
    if len(points) <= most:
        return list(points)
    kept: list[Point] = []
    stretches = max(1, most // 2)
    for i in range(stretches):
        part = points[i * len(points) // stretches : (i + 1) * len(points) // stretches]
        low, high = min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])
        kept += [low] if low == high else sorted((low, high))
    return kept


def every(points: Sequence[T], most: int) -> list[T]:
    """At most `most` points, evenly spaced, the last one always among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]
