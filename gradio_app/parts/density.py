"""How often each noise level t is trained: densities of the recipe's distributions, without torch."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

Curve = list[tuple[float, float]]
POINTS = 81


def cumulative(spec: dict[str, Any], t: float) -> float:
    """The share of draws below t, before any shift."""
    kind, t = spec.get("kind", "uniform"), min(max(t, 1e-9), 1 - 1e-9)
    if kind == "logit_normal":
        z = (math.log(t / (1 - t)) - spec.get("mean", 0.0)) / spec.get("std", 1.0)
        return (1 + math.erf(z / math.sqrt(2))) / 2
    if kind == "mode":
        return _inverse(lambda u: _mode(spec.get("scale", 1.29), u), t)
    if kind == "beta":
        return _beta(spec.get("alpha", 2.0), spec.get("beta", 2.0), t)
    low, high = spec.get("low", 0.0), spec.get("high", 1.0)
    return min(max((t - low) / (high - low), 0.0), 1.0)


def unshifted(t: float, shift: float) -> float:
    """The t that a shift brings to this one: the inverse of s t / (1 + (s - 1) t)."""
    return t / (shift - (shift - 1) * t)


def curve(spec: dict[str, Any], shift: float = 1.0, points: int = POINTS) -> Curve:
    """(t, density) in the middle of equal slices of [0, 1]; the densities' mean is 1."""
    edges = [i / points for i in range(points + 1)]
    below = [cumulative(spec, unshifted(t, shift)) for t in edges]
    below[0], below[-1] = 0.0, 1.0
    return [
        ((a + b) / 2, max(0.0, high - low) * points)
        for (a, b), (low, high) in zip(pairwise(edges), pairwise(below), strict=True)
    ]


def _mode(scale: float, u: float) -> float:
    """Esser et al. 2024, eq. 20, with u running towards noise."""
    v = 1 - u
    return 1 - v - scale * (math.cos(math.pi / 2 * v) ** 2 - 1 + v)


def _inverse(rising: Any, value: float) -> float:
    """Where a rising function on [0, 1] takes a value, by halving."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2


def _beta(a: float, b: float, t: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz' method)."""
    if t > (a + 1) / (a + b + 2):
        return 1 - _beta(b, a, 1 - t)
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(t) + b * math.log1p(-t)
    c, d = 1.0, 1 / _away(1 - (a + b) * t / (a + 1))
    total = d
    for m in range(1, 300):
        for top in (
            m * (b - m) * t / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * t / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + top * d)
            c = _away(1 + top / c)
            total *= c * d
        if abs(c * d - 1) < 1e-12:
            break
    return math.exp(log) * total / a


def _away(value: float) -> float:
    """Not quite zero."""
    return value if abs(value) > 1e-300 else 1e-300
