"""From drawn items to batches of cached tensors, ahead of the training."""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from ..errors import UserError
from ..family import Family
from ..seeds import mix
from ..types import Batch, Cond
from .cache import Cache, Entry
from .fill import COND, Keys
from .plan import Planned
from .sampler import Draw, Sampler
from .workers import Failure, ahead


@dataclass
class Loader:
    """Batches, on the CPU. caption_dropout: share of empty captions. workers: processes; 0: a thread of this one.

    text: whether conditions hold the cached text; without it whoever trains the text encoders tells the captions.
    """

    sampler: Sampler
    cache: Cache
    keys: Keys
    family: Family
    seed: int = 0
    caption_dropout: float = 0.0
    workers: int = 0
    text: bool = True

    def steps(self, start: int = 0) -> Generator[list[Batch]]:
        """This rank's micro-batches of step `start`, `start` + 1, ... without end, made ahead of their use.

        The same for any number of workers. Errors of a thread or worker are raised here. Close the iterator (or let
        it go) to end them.
        """
        made = ahead(_Steps(self, start), self.workers) if self.workers else map(self.step, itertools.count(start))
        ready = next(made)  # here, not in the thread: processes are best begun where no other thread computes
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            while True:
                coming = pool.submit(next, made)
                yield ready
                ready = coming.result()

    def step(self, k: int) -> list[Batch]:
        """This rank's micro-batches of step k (from 0)."""
        return [self._batch(draws, k) for draws in self.sampler.step(k)]

    def fixed(self, indices: Sequence[int]) -> Batch:
        """Given uses of one bucket as one batch, of any role and without dropout: for validation."""
        return self._batch([Draw(i, place, len(indices), 0) for place, i in enumerate(indices)], None)

    def _batch(self, draws: Sequence[Draw], k: int | None) -> Batch:
        plans = [self.keys.plan[d.index] for d in draws]
        media = [self.cache.get(self.keys.media_of(p)) for p in plans]
        captions = [self._caption(draw, plan, k) for draw, plan in zip(draws, plans, strict=True)]
        conds: list[Cond] = []
        for caption, plan, entry in zip(captions, plans, media, strict=True):
            text = self.cache.get(self.keys.text(self.keys.told(plan, caption))) if self.text else {}
            own = {name.removeprefix(COND): v for name, v in entry.items() if name.startswith(COND)}
            conds.append({**text, **own, **self.family.frame_cond(plan.framing)})
        bucket = plans[0].bucket
        spec = self.keys.plan.datasets[bucket.dataset]
        return Batch(
            latents=torch.stack([m["latents"] for m in media]),
            cond=self.family.collate(conds),
            keys=tuple(p.item.ref for p in plans),
            draws=tuple(d.place for d in draws),
            of=draws[0].of,
            mask=_masks(media) if bucket.masked else None,
            role=spec.role,
            strength=spec.strength,
            control=torch.stack([m["control"] for m in media]).float() / 127.5 - 1 if bucket.controlled else None,
            captions=tuple(captions),
        )

    def _caption(self, draw: Draw, planned: Planned, k: int | None) -> str:
        """One of the item's captions, or the empty one.

        Seeded by step and place, so that it depends neither on ranks nor on how a step is cut into batches.
        """
        captions = planned.item.captions
        if k is None:
            return captions[0]
        if self.caption_dropout and _random(self.seed, "caption", k, draw.place).random() < self.caption_dropout:
            return ""
        return captions[0] if len(captions) == 1 else _random(self.seed, "choice", k, draw.place).choice(captions)


class _Steps(IterableDataset[Any]):
    """Worker w of n makes steps start + w, start + w + n, ...: the loader puts them in order again."""

    def __init__(self, loader: Loader, start: int) -> None:
        self.loader, self.start = loader, start

    def __iter__(self) -> Iterator[list[Batch] | Failure]:
        info = get_worker_info()
        first, by = (info.id, info.num_workers) if info else (0, 1)
        for k in itertools.count(self.start + first, by):
            try:
                yield self.loader.step(k)
            except UserError as error:
                yield Failure(str(error))


def _random(*purpose: object) -> random.Random:
    return random.Random(mix(*purpose))


def _masks(media: Sequence[Entry]) -> Tensor:
    """[B, 1, h, w]; all of an item without a mask counts."""
    whole = torch.ones(1, *media[0]["latents"].shape[-2:])
    return torch.stack([m.get("mask", whole) for m in media])
