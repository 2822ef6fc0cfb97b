"""In which order items are seen: a pure function of seed and step, so that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..seeds import mix


@dataclass(frozen=True, slots=True)
class Draw:
    """One item in one step. index: into the plan. place: among all `of` items of the optimiser step."""

    index: int
    place: int
    of: int
    epoch: int


@dataclass(frozen=True)
class Uses:
    """What can be drawn, in columns: place in the plan, bucket and times per epoch (may be a fraction) of each use."""

    index: np.ndarray
    bucket: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Rules:
    """How steps are cut: items per forward pass, passes per step, what becomes of a bucket's last step."""

    batch: int
    accumulate: int
    seed: int
    last: Literal["smaller", "fill"] = "smaller"


class Sampler:
    """Items times repeats → optimiser steps → micro-batches of this rank.

    One optimiser step has up to batch * accumulate * world items from one bucket. The last one of a bucket is smaller,
    or (last="fill") filled with the items that its bucket began the epoch with; nothing is dropped. A fraction of a
    time is a share of the bucket's items, another one each epoch, until all have been seen.
    """

    def __init__(self, uses: Uses, rules: Rules, *, rank: int = 0, world: int = 1) -> None:
        self.rules, self.rank, self.world = rules, rank, world
        self.size = rules.batch * rules.accumulate * world
        order = np.argsort(uses.bucket, kind="stable")
        _, starts = np.unique(uses.bucket[order], return_index=True)
        self._members: list[np.ndarray] = np.split(uses.index[order], starts[1:]) if len(order) else []
        self._times = [float(t) for t in uses.times[order][starts]]
        self._lengths = [self._length(len(m), t) for m, t in zip(self._members, self._times, strict=True)]
        self._groups = [-(-n // self.size) for n in self._lengths]
        self._memo: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

    @staticmethod
    def _length(members: int, times: float) -> int:
        """Items drawn in an epoch: whole rounds, and the share of a round, at least one item."""
        return max(1, int(times) * members + round((times - int(times)) * members))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch; 0 when there is nothing to train on."""
        return sum(self._groups)

    @property
    def items_per_epoch(self) -> int:
        """Items drawn in one epoch, repeats, weights and resolutions counted, without what fills last steps."""
        return sum(self._lengths)

    def per_bucket(self) -> list[tuple[int, int]]:
        """(items drawn, optimiser steps) per epoch of each bucket, in the order of the buckets' numbers."""
        return list(zip(self._lengths, self._groups, strict=True))

    def step(self, k: int) -> list[list[Draw]]:
        """Step k (from 0) → this rank's micro-batches, of at most `batch` items and never empty.

        A step with fewer items than ranks gives some ranks no micro-batch at all.
        """
        epoch, number = divmod(k, self.steps_per_epoch)
        items, starts, ends = self._order(epoch)
        group = items[starts[number] : ends[number]]
        n = len(group)
        first, last = self.rank * n // self.world, (self.rank + 1) * n // self.world
        draws = [Draw(index, first + i, n, epoch) for i, index in enumerate(group[first:last].tolist())]
        return [draws[start : start + self.rules.batch] for start in range(0, len(draws), self.rules.batch)]

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All items of an epoch, and where each step's begin and end; the current epoch's are kept."""
        if self._memo is None or self._memo[0] != epoch:
            random = np.random.Generator(np.random.Philox(key=mix(self.rules.seed, "order", epoch)))
            items, starts, ends, offset = [], [], [], 0
            for number in range(len(self._members)):
                drawn = self._drawn(number, epoch)
                random.shuffle(drawn)
                count = self._groups[number] * self.size if self.rules.last == "fill" else len(drawn)
                drawn = np.resize(drawn, count)
                begin = np.arange(0, count, self.size)
                items.append(drawn)
                starts.append(begin + offset)
                ends.append(np.minimum(begin + self.size, count) + offset)
                offset += count
            order = random.permutation(self.steps_per_epoch)
            self._memo = (epoch, np.concatenate(items), np.concatenate(starts)[order], np.concatenate(ends)[order])
        return self._memo[1:]

    def _drawn(self, number: int, epoch: int) -> np.ndarray:
        """The items of one bucket in one epoch, unordered: whole rounds and this epoch's share of a round."""
        members, rounds = self._members[number], int(self._times[number])
        rest = self._lengths[number] - rounds * len(members)
        parts = [members] * rounds
        if rest:
            # one fixed order of the members, of which each epoch takes the next piece
            fixed = np.random.Generator(np.random.Philox(key=mix(self.rules.seed, "share", number)))
            circle = fixed.permutation(members)
            parts.append(np.take(circle, np.arange(epoch * rest, (epoch + 1) * rest), mode="wrap"))
        return np.concatenate(parts)


def uses(index: np.ndarray, bucket: np.ndarray, datasets: Sequence[int], times: Sequence[float]) -> Uses:
    """The uses [N] of a plan, with the times per epoch of their data sets. datasets: [buckets] the data set of each."""
    per_bucket = np.array([times[d] for d in datasets], np.float64)
    return Uses(index, bucket, per_bucket[bucket] if len(bucket) else np.empty(0))
