"""Which sizes there are at a resolution, and which one each picture takes: by shape, never enlarged unless asked.

Everything is columns of numbers. Knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..family import Framing
from ..recipe import MediaSpec

WIDEST = 4.0
"""Pictures wider or taller than this (long side / short side) are cut to it."""
STEPS = 16
"""Buckets differ by about 1/16 of the edge length: finer ones would leave too few pictures in each."""


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
def shapes(edge: int, multiple: int, fit: str) -> tuple[np.ndarray, np.ndarray]:
    """(log(width / height) [N] ascending, sizes [N, 2]) of one resolution; of one shape only the nearest in area."""
    if fit == "edge":
        step = step_of(edge, multiple)
        long = range(edge, int(edge * WIDEST) + 1, step)
        sizes: Sequence[tuple[int, int]] = sorted({s for w in long for s in ((w, edge), (edge, w))})
    else:
        sizes = buckets(edge, multiple)
    by_shape: dict[float, tuple[int, int]] = {}
    for size in sorted(sizes, key=lambda s: (abs(s[0] * s[1] - edge * edge), s)):
        by_shape.setdefault(math.log(size[0] / size[1]), size)
    logs = sorted(by_shape)
    return np.array(logs), np.array([by_shape[log] for log in logs], np.int32)


def choose(width: np.ndarray, height: np.ndarray, edge: int, multiple: int, fit: str = "area") -> np.ndarray:
    """The bucket [N, 2] whose shape is nearest to each width / height, by ratio."""
    logs, sizes = shapes(edge, multiple, fit)
    wanted = np.log(width / height)
    above = np.searchsorted(logs, wanted).clip(1, max(1, len(logs) - 1))
    if len(logs) == 1:
        return np.repeat(sizes, len(wanted), 0)
    nearer = np.where(wanted - logs[above - 1] <= logs[above] - wanted, above - 1, above)
    return sizes[nearer]


def sized(
    width: np.ndarray, height: np.ndarray, edge: int, media: MediaSpec, multiple: int
) -> tuple[np.ndarray, np.ndarray]:
    """For items of these sizes [N]: (bucket [N, 2], edge of that bucket [N]); edge 0 where there is none.

    With small=own an item that would be enlarged takes the largest smaller edge at which it is not, at last the
    smallest square that the model takes.
    """
    if media.fit == "exact":
        assert media.size is not None
        found = np.tile(np.array(media.size, np.int32), (len(width), 1))
    else:
        found = choose(width, height, edge, multiple, media.fit)
    edges = np.full(len(width), edge, np.int32)
    if media.small == "enlarge":
        return found, edges
    todo = np.flatnonzero(_too_large(found, width, height))
    edges[todo] = 0
    if media.small == "leave_out" or media.fit == "exact":
        return found, edges
    step = step_of(edge, multiple)
    for smaller in [*range(edge - step, step - 1, -step), *range(step - multiple, multiple - 1, -multiple)]:
        if not len(todo):
            break
        tried = choose(width[todo], height[todo], smaller, multiple, media.fit)
        fits = ~_too_large(tried, width[todo], height[todo])
        found[todo[fits]], edges[todo[fits]] = tried[fits], smaller
        todo = todo[~fits]
    todo = todo[np.minimum(width[todo], height[todo]) >= multiple]
    found[todo], edges[todo] = multiple, multiple
    return found, edges


def _too_large(sizes: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    return (sizes[:, 0] > width) | (sizes[:, 1] > height)


def frame(original: tuple[int, int], size: tuple[int, int]) -> Framing:
    """Scale a picture to cover `size` and cut out its middle."""
    scale = max(size[0] / original[0], size[1] / original[1])
    scaled = (max(size[0], round(original[0] * scale)), max(size[1], round(original[1] * scale)))
    return Framing(original, scaled, ((scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2), size)
