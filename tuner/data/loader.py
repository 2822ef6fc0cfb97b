"""From drawn pictures to batches of cached tensors, one optimiser step ahead of the training."""

from __future__ import annotations

import itertools
import random
from collections import OrderedDict
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from ..family import Family
from ..seeds import mix
from ..types import Batch, Cond
from .buckets import Planned
from .cache import Cache
from .sampler import Draw, Sampler


@dataclass(frozen=True)
class Keys:
    """Where the cache holds everything. media: one key per plan, in order. text: caption → key, "" for dropout."""

    media: Sequence[str]
    text: dict[str, str]


class Memory:
    """The entries of a cache that were used last, up to a number of bytes: opening files at every step is slow."""

    def __init__(self, cache: Cache, limit: int) -> None:
        self.cache, self.limit, self.used = cache, limit, 0
        self._entries: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str) -> dict[str, Tensor]:
        """The entry; its tensors are shared and must not be changed."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        entry = self.cache.get(key)
        with self._lock:
            if key not in self._entries:
                self._entries[key] = entry
                self.used += _bytes(entry)
            while self.used > self.limit and self._entries:
                self.used -= _bytes(self._entries.popitem(last=False)[1])
        return entry


def _bytes(entry: dict[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in entry.values())


@dataclass
class Loader:
    """Batches, on the CPU. memory: bytes of cached tensors that are kept. caption_dropout: share of empty captions."""

    sampler: Sampler
    planned: Sequence[Planned]
    cache: Cache
    keys: Keys
    family: Family
    seed: int = 0
    caption_dropout: float = 0.0
    memory: int = 1 << 30
    _memory: Memory = field(init=False, repr=False)
    _masked: frozenset[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._memory = Memory(self.cache, self.memory)
        self._masked = frozenset(p.item.dataset for p in self.planned if p.item.mask)
        if self.caption_dropout and "" not in self.keys.text:
            raise AssertionError("caption dropout needs the empty caption in the cache")

    def steps(self, start: int = 0) -> Generator[list[Batch]]:
        """This rank's micro-batches of step `start`, `start` + 1, ... without end, made one step ahead in a thread.

        Errors of the thread are raised here. Close the iterator (or let it go) to end the thread.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            ahead = pool.submit(self.step, start)
            for k in itertools.count(start + 1):
                ready = ahead.result()
                ahead = pool.submit(self.step, k)
                yield ready

    def step(self, k: int) -> list[Batch]:
        """This rank's micro-batches of step k (from 0)."""
        return [self._batch(draws, k) for draws in self.sampler.step(k)]

    def fixed(self, indices: Sequence[int]) -> Batch:
        """Given plans of one size and data set as one batch, of any role and without dropout: for validation."""
        return self._batch([Draw(i, place, len(indices), 0) for place, i in enumerate(indices)], None)

    def _batch(self, draws: Sequence[Draw], k: int | None) -> Batch:
        plans = [self.planned[d.index] for d in draws]
        media = [self._memory.get(self.keys.media[d.index]) for d in draws]
        conds: list[Cond] = []
        for draw, plan in zip(draws, plans, strict=True):
            caption = "" if k is not None and self._dropped(draw, k) else plan.item.caption
            conds.append({**self._memory.get(self.keys.text[caption]), **self.family.frame_cond(plan.framing)})
        latents = torch.stack([m["latents"] for m in media])
        return Batch(
            latents=latents,
            cond=self.family.collate(conds),
            keys=tuple(str(p.item.path) for p in plans),
            draws=tuple(d.place for d in draws),
            of=draws[0].of,
            mask=_masks(media, latents) if plans[0].item.dataset in self._masked else None,
        )

    def _dropped(self, draw: Draw, k: int) -> bool:
        """Seeded by step and place, so that it depends neither on ranks nor on how a step is cut into batches."""
        if not self.caption_dropout:
            return False
        return random.Random(mix(self.seed, "caption", k, draw.place)).random() < self.caption_dropout


def _masks(media: Sequence[dict[str, Tensor]], latents: Tensor) -> Tensor:
    """[B, 1, h, w]; all of a picture without a mask counts."""
    whole = torch.ones(1, *latents.shape[-2:])
    return torch.stack([m.get("mask", whole) for m in media])
