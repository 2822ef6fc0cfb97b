"""Choose a size for each picture, near to its own shape, and plan how it is scaled and cut to that size."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ..errors import Problem
from ..family import Framing, Geometry
from .index import Item

WIDEST = 4.0
"""Pictures wider or taller than this (long side / short side) are cut to it."""
STEPS = 16
"""Buckets differ by about 1/16 of the edge length: finer ones would leave too few pictures in each."""
CUT = 0.25
"""Share of a picture's area beyond which cutting it off is worth a warning."""


@dataclass(frozen=True)
class Planned:
    """A picture at one resolution. framing: all its pairs are (width, height) or (left, top) in pixels."""

    item: Item
    framing: Framing
    resolution: int


def plan(items: Iterable[Item], resolutions: Sequence[int], geometry: Geometry) -> tuple[list[Planned], list[Problem]]:
    """Every item once per resolution (edge length in pixels), in the order of the items, and what was noticed."""
    edges, problems = _edges(resolutions, geometry.multiple)
    planned = [
        Planned(item, frame((item.width, item.height), choose(item.width / item.height, edge, geometry.multiple)), edge)
        for item in items
        for edge in edges
    ]
    return planned, [*problems, *_enlarged(planned), *_cut(planned)]


def _edges(resolutions: Sequence[int], multiple: int) -> tuple[list[int], list[Problem]]:
    """Resolutions as multiples of the model's smallest step, each once."""
    edges, problems = [], []
    for number, wanted in enumerate(resolutions):
        key, edge = f"media.resolutions.{number}", wanted // multiple * multiple
        if edge <= 0:
            text = f"{key} is {wanted}, but this model needs at least {multiple}; set it to a multiple of {multiple}."
            problems.append(Problem("error", key, text))
            continue
        if edge != wanted:
            text = f"{key} is {wanted}; {edge} is used, the next lower multiple of {multiple}, which this model needs."
            problems.append(Problem("note", key, text))
        if edge in edges:
            problems.append(Problem("note", key, f"{key} comes to {edge} like another before it; it is used once."))
        else:
            edges.append(edge)
    return edges, problems


def step_of(edge: int, multiple: int) -> int:
    """By how many pixels buckets differ: the largest multiple up to edge / 16 that divides the edge."""
    fitting = (s for s in range(multiple, max(multiple, edge // STEPS) + 1, multiple) if edge % s == 0)
    return max(fitting)


@lru_cache(64)
def buckets(edge: int, multiple: int) -> tuple[tuple[int, int], ...]:
    """All sizes (width, height) at one resolution, widest last.

    Both are multiples of `step_of(edge, multiple)`; the area is within step * max(width, height) / 2 of edge²;
    long side / short side is at most about `WIDEST`. The square edge x edge is always one of them.
    """
    step, sizes = step_of(edge, multiple), {(edge, edge)}
    for width in range(edge, int(edge * math.sqrt(WIDEST)) + 1, step):
        height = max(step, int(edge * edge / width / step + 0.5) * step)
        sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes, key=lambda s: (s[0] / s[1], s)))


@lru_cache(64)
def _shapes(edge: int, multiple: int) -> tuple[tuple[float, ...], tuple[tuple[int, int], ...]]:
    """log(width / height), ascending, and the bucket of each; of buckets of one shape the nearest in area."""
    by_shape: dict[float, tuple[int, int]] = {}
    for size in sorted(buckets(edge, multiple), key=lambda s: (abs(s[0] * s[1] - edge * edge), s)):
        by_shape.setdefault(math.log(size[0] / size[1]), size)
    shapes = sorted(by_shape)
    return tuple(shapes), tuple(by_shape[s] for s in shapes)


def choose(aspect: float, edge: int, multiple: int) -> tuple[int, int]:
    """The bucket whose shape is nearest to width / height = `aspect`, by ratio."""
    shapes, sizes = _shapes(edge, multiple)
    wanted = math.log(aspect)
    above = min(max(bisect(shapes, wanted), 1), len(shapes) - 1) if len(shapes) > 1 else 0
    below = max(above - 1, 0)
    return sizes[below] if wanted - shapes[below] <= shapes[above] - wanted else sizes[above]


def frame(original: tuple[int, int], size: tuple[int, int]) -> Framing:
    """Scale a picture to cover `size` and cut out its middle."""
    scale = max(size[0] / original[0], size[1] / original[1])
    scaled = (max(size[0], round(original[0] * scale)), max(size[1], round(original[1] * scale)))
    return Framing(original, scaled, ((scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2), size)


def _enlarged(planned: Sequence[Planned]) -> list[Problem]:
    """Say how many pictures are smaller than their bucket."""
    scales = [(max(p.framing.scaled[0] / p.item.width, p.framing.scaled[1] / p.item.height), p) for p in planned]
    larger = [(s, p) for s, p in scales if p.framing.scaled[0] > p.item.width or p.framing.scaled[1] > p.item.height]
    if not larger:
        return []
    most, count = max(s for s, _ in larger), len({p.item.path for _, p in larger})
    start = "1 picture is smaller than its bucket and is" if count == 1 else (
        f"{count} pictures are smaller than their bucket and are"
    )  # fmt: skip
    text = (
        f"{start} enlarged up to {most:.3g} times (first: {larger[0][1].item.path}). "
        "Use larger pictures or a lower media.resolutions for sharper results."
    )
    return [Problem("note", "media.resolutions", text)]


def _cut(planned: Sequence[Planned]) -> list[Problem]:
    """Warn of pictures that lose much of their area."""
    cut = [(1 - math.prod(p.framing.size) / math.prod(p.framing.scaled), p) for p in planned]
    much = [(share, p) for share, p in cut if share > CUT]
    if not much:
        return []
    most, count = max(share for share, _ in much), len({p.item.path for _, p in much})
    start = "1 picture is" if count == 1 else f"{count} pictures are"
    text = (
        f"{start} much wider or taller than the sizes that are trained; up to {most:.0%} of the area is cut off "
        f"(first: {much[0][1].item.path}). Cut out yourself what should be learned if the middle is not it."
    )
    return [Problem("warning", "media.resolutions", text)]
