"""In which order pictures are seen: a pure function of seed and step, so that a resumed run goes on exactly."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..seeds import mix
from .buckets import Planned


@dataclass(frozen=True, slots=True)
class Draw:
    """One picture in one step. index: into the plans. place: among all `of` pictures of the optimiser step."""

    index: int
    place: int
    of: int
    epoch: int


class Sampler:
    """Pictures times repeats → optimiser steps → micro-batches of this rank.

    One optimiser step has up to batch * accumulate * world pictures from one bucket: one size, one resolution, one data
    set. The last group of a bucket is smaller, never dropped. Only pictures with the role "train" are drawn.
    """

    def __init__(
        self, planned: Sequence[Planned], batch: int, accumulate: int, seed: int, *, rank: int = 0, world: int = 1
    ) -> None:
        self.batch, self.seed, self.rank, self.world = batch, seed, rank, world
        self.size = batch * accumulate * world
        by_bucket: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for index, plan in enumerate(planned):
            if plan.item.role == "train":
                bucket = (plan.framing.size, plan.resolution, plan.item.dataset)
                by_bucket[bucket] += [index] * plan.item.repeats
        self._buckets = list(by_bucket.values())
        self._memo: tuple[int, list[list[int]]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in which every picture is seen `repeats` times; 0 when there is nothing to train on."""
        return sum(-(-len(b) // self.size) for b in self._buckets)

    @property
    def pictures_per_epoch(self) -> int:
        """Pictures seen in one epoch, repeats and resolutions counted."""
        return sum(len(b) for b in self._buckets)

    def step(self, k: int) -> list[list[Draw]]:
        """Step k (from 0) → this rank's micro-batches, of at most `batch` pictures and never empty.

        A group with fewer pictures than ranks gives some ranks no micro-batch at all.
        """
        epoch, number = divmod(k, self.steps_per_epoch)
        group = self._order(epoch)[number]
        n = len(group)
        mine = range(self.rank * n // self.world, (self.rank + 1) * n // self.world)
        draws = [Draw(group[place], place, n, epoch) for place in mine]
        return [draws[start : start + self.batch] for start in range(0, len(draws), self.batch)]

    def _order(self, epoch: int) -> list[list[int]]:
        """All groups of an epoch in order; the current epoch's are kept."""
        known, groups = self._memo
        if known != epoch:
            shuffle = random.Random(mix(self.seed, "order", epoch)).shuffle
            groups = []
            for bucket in self._buckets:
                order = list(bucket)
                shuffle(order)
                groups += [order[i : i + self.size] for i in range(0, len(order), self.size)]
            shuffle(groups)
            self._memo = (epoch, groups)
        return groups
