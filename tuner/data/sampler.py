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
    """What can be drawn, in columns: place in the plan, bucket and times per epoch (may be a fraction) of each use.

    times: the same for all uses of a bucket. repeats: whole numbers that multiply it and may differ within a bucket.
    """

    index: np.ndarray
    bucket: np.ndarray
    times: np.ndarray
    repeats: np.ndarray | None = None


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
    or (last="fill") filled with the items that its bucket began the epoch with; nothing is dropped. With a fraction of
    a time, each epoch goes on where the one before it stopped in a fixed order of the bucket's items: over many epochs
    each is seen equally often, however few its bucket has, and epochs differ in length by a few items.
    """

    def __init__(self, uses: Uses, rules: Rules, *, rank: int = 0, world: int = 1) -> None:
        self.rules, self.rank, self.world = rules, rank, world
        self.size = rules.batch * rules.accumulate * world
        order = np.argsort(uses.bucket, kind="stable")
        _, starts = np.unique(uses.bucket[order], return_index=True)
        members = np.split(uses.index[order], starts[1:]) if len(order) else []
        repeats = np.ones(len(order), np.int64) if uses.repeats is None else uses.repeats[order]
        rounds = [_round(m, r) for m, r in zip(members, np.split(repeats, starts[1:]), strict=False)]
        members = [m for m, _ in rounds]
        times = uses.times[order][starts] * np.array([each for _, each in rounds], np.int64)
        whole = times == np.floor(times)
        self._circles = [m if w else self._random("share", b).permutation(m) for b, (m, w) in
                         enumerate(zip(members, whole, strict=True))]  # fmt: skip
        self._each = np.array([len(m) for m in members], np.float64) * times
        # not every bucket of one item at half a time is to be drawn in the same epoch
        self._ahead = np.where(whole, 0.0, self._random("ahead", 0).random(len(members)))
        self._same = bool(whole.all())
        self._ends = np.empty(0, np.int64)
        """Steps up to the end of each epoch, as far as was asked, where epochs differ."""
        self._memo: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

    def _random(self, purpose: str, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=mix(self.rules.seed, purpose, number)))

    def _before(self, epochs: np.ndarray) -> np.ndarray:
        """Items of each bucket [epochs, buckets] that were drawn before each epoch."""
        return np.floor(epochs[:, None] * self._each + self._ahead).astype(np.int64)

    def _steps(self, first: int, count: int) -> np.ndarray:
        """Optimiser steps of each bucket [count, buckets] in epochs `first`, `first` + 1, ..."""
        return -(-np.diff(self._before(np.arange(first, first + count + 1)), axis=0) // self.size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch (the first, where they differ); 0 when there is nothing to train on."""
        return int(self._steps(0, 1).sum())

    @property
    def items_per_epoch(self) -> float:
        """Items drawn in one epoch on average, repeats and weights counted, without what fills last steps."""
        return float(self._each.sum())

    def per_bucket(self) -> list[tuple[float, int]]:
        """(items per epoch on average, optimiser steps of the first epoch) of each bucket, in order."""
        return [(int(n) if n == int(n) else round(n, 3), s) for n, s in
                zip(self._each.tolist(), self._steps(0, 1)[0].tolist(), strict=True)]  # fmt: skip

    def step(self, k: int) -> list[list[Draw]]:
        """Step k (from 0) → this rank's micro-batches, of at most `batch` items and never empty.

        A step with fewer items than ranks gives some ranks no micro-batch at all.
        """
        epoch, number = self._place(k)
        items, starts, ends = self._order(epoch)
        group = items[starts[number] : ends[number]]
        n = len(group)
        first, last = self.rank * n // self.world, (self.rank + 1) * n // self.world
        draws = [Draw(index, first + i, n, epoch) for i, index in enumerate(group[first:last].tolist())]
        return [draws[start : start + self.rules.batch] for start in range(0, len(draws), self.rules.batch)]

    def _place(self, k: int) -> tuple[int, int]:
        """(epoch, step in it) of step k."""
        if self._same:
            return divmod(k, self.steps_per_epoch)
        while not len(self._ends) or self._ends[-1] <= k:
            done = int(self._ends[-1]) if len(self._ends) else 0
            further = self._steps(len(self._ends), 64).sum(1).cumsum() + done
            self._ends = np.concatenate([self._ends, further])
        epoch = int(np.searchsorted(self._ends, k, side="right"))
        return epoch, k - (int(self._ends[epoch - 1]) if epoch else 0)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All items of an epoch, and where each step's begin and end; the current epoch's are kept."""
        if self._memo is None or self._memo[0] != epoch:
            random = self._random("order", epoch)
            before, after = self._before(np.arange(epoch, epoch + 2))
            items, starts, ends, offset = [], [], [], 0
            for circle, first, last in zip(self._circles, before.tolist(), after.tolist(), strict=True):
                drawn = np.take(circle, np.arange(first, last), mode="wrap")
                random.shuffle(drawn)
                count = -(-len(drawn) // self.size) * self.size if self.rules.last == "fill" else len(drawn)
                drawn = np.resize(drawn, count)
                begin = np.arange(0, count, self.size)
                items.append(drawn)
                starts.append(begin + offset)
                ends.append(np.minimum(begin + self.size, count) + offset)
                offset += count
            items, starts, ends = (np.concatenate(columns) for columns in (items, starts, ends))
            order = random.permutation(len(starts))
            self._memo = (epoch, items, starts[order], ends[order])
        return self._memo[1:]


def _round(members: np.ndarray, repeats: np.ndarray) -> tuple[np.ndarray, int]:
    """(what comes up in one round of a bucket, rounds per time): an item that is repeated more stands in it more often.

    Where all have the same repeats, a round is the items themselves, so that these recipes keep their order.
    """
    if not len(repeats) or (repeats == repeats[0]).all():
        return members, int(repeats[0]) if len(repeats) else 1
    return np.concatenate([members[repeats > k] for k in range(int(repeats.max()))]), 1


def uses(
    index: np.ndarray,
    bucket: np.ndarray,
    datasets: Sequence[int],
    times: Sequence[float],
    repeats: np.ndarray | None = None,
) -> Uses:
    """The uses [N] of a plan, with the times per epoch of their data sets. datasets: [buckets] the data set of each.

    repeats: [N] of each use, which multiply those times; none: once.
    """
    per_bucket = np.array([times[d] for d in datasets], np.float64)
    return Uses(index, bucket, per_bucket[bucket] if len(bucket) else np.empty(0), repeats)
