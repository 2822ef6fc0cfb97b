"""Make the cache entries that a plan needs: what each is made of (its key), and the encoding of those that lack.

Items are decoded in worker processes beside the encoder; one encoder is loaded at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from ..family import Family, Geometry
from ..types import Cond, Media, Parts, Prompt
from . import tensor
from .cache import Cache, Entry, Writer
from .plan import Bucket, Plan, Planned
from .tensor import Tensors
from .workers import Failure, ahead

FORMAT = 3
"""Raise it whenever decoding, scaling or what an entry holds changes."""
COND = "cond."
"""Before the names of what `Family.media_cond` gave, in an entry."""
FEW = 24
"""Up to this number of items, starting worker processes takes longer than it saves."""

Progress = Callable[..., None]
"""Called with (entries made, entries to make, bytes= what all of them will have as far as is known)."""


@dataclass(frozen=True)
class Encoder:
    """What makes cache entries: a family with its loaded encoders, and where they are."""

    family: Family
    parts: Parts
    geometry: Geometry
    device: torch.device | str = "cpu"


class Keys:
    """The keys of a plan's entries: of the contents, how they are cut, and what encodes them; never of names.

    media, text: fingerprints of the encoders' weights and precision. rate: samples of sound per second, 0 without.
    """

    def __init__(self, plan: Plan, family: Family, media: str, text: str, rate: int = 0) -> None:
        self.plan, self.family, self.rate = plan, family, rate
        settings = json.dumps([family.name, family.task, family.encode_settings()], sort_keys=True, default=repr)
        self._media = hashlib.sha256(f"media {FORMAT} {settings} {media} {plan.fps}".encode())
        self._text = hashlib.sha256(f"text {FORMAT} {settings} {text}".encode())

    def media(self, i: int) -> str:
        """The key of the latents (mask, control, conditions) of one use."""
        return self.media_of(self.plan[i])

    def all(self) -> list[str]:
        """The keys of all uses of the plan, in order."""
        return [self.media_of(planned) for planned in self.plan]

    def media_of(self, planned: Planned) -> str:
        """See `media`."""
        item, framing, bucket = planned.item, planned.framing, planned.bucket
        files = [item.digest, *(c.digest if c else "" for c in (item.mask, item.control)), _references(planned)]
        cut = [framing.scaled, framing.corner, framing.size, bucket.frames, bucket.samples, planned.start]
        digest = self._media.copy()
        background = self.plan.datasets[item.dataset].background
        digest.update(json.dumps([files, cut, background]).encode())
        return digest.hexdigest()

    def text(self, told: Told) -> str:
        """The key of the embeddings of what a text encoder is told."""
        digest = self._text.copy()
        digest.update(json.dumps([told.text, told.references, told.lyrics, told.seconds]).encode())
        return digest.hexdigest()

    def told(self, planned: Planned, caption: str) -> Told:
        """What the family's text encoders are told of an item with this caption."""
        reads = self.family.reads
        return Told(
            caption,
            _references(planned) if "references" in reads else (),
            planned.item.lyrics if "lyrics" in reads else "",
            planned.bucket.samples / self.rate if "seconds" in reads and self.rate else 0.0,
            planned if "references" in reads else None,
        )


@dataclass(frozen=True)
class Told:
    """What a text encoder is told, by content. planned: the item, or pictures (PIL): what it looks at."""

    text: str
    references: tuple[Any, ...] = ()
    lyrics: str = ""
    seconds: float = 0.0
    planned: Planned | None = field(default=None, compare=False)
    pictures: tuple[Any, ...] = field(default=(), compare=False)

    def prompt(self) -> Prompt:
        """With its reference pictures read."""
        pictures = tuple(tensor.to_tensor(p) for p in self.pictures)
        if self.planned is not None:
            pictures = tensor.references(self.planned)
        return Prompt(self.text, pictures, self.lyrics, self.seconds)


def _references(planned: Planned) -> tuple[Any, ...]:
    pairs = zip(planned.item.references, planned.bucket.references, strict=True)
    return tuple((r.digest, *size) for r, size in pairs)


# -- media -------------------------------------------------------------------------------------------------------------


class _Groups(Dataset[Any]):
    """Groups of uses of one bucket, decoded."""

    def __init__(self, plan: Plan, geometry: Geometry, groups: Sequence[Sequence[int]]) -> None:
        self.plan, self.geometry, self.groups = plan, geometry, groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> list[Tensors] | Failure:
        try:
            return [self._one(i) for i in self.groups[index]]
        except UserError as error:
            return Failure(str(error))

    def _one(self, i: int) -> Tensors:
        planned = self.plan[i]
        return tensor.load(planned, self.geometry, self.plan.datasets[planned.item.dataset].background)


def media_groups(plan: Plan, wanted: Iterable[int], batch: int) -> list[list[int]]:
    """The uses in groups of one bucket, at most `batch` each; large ones first, so that memory runs out early."""
    by_bucket: dict[int, list[int]] = {}
    for i in wanted:
        by_bucket.setdefault(int(plan.bucket[i]), []).append(i)
    order = sorted(by_bucket, key=lambda b: -_volume(plan.buckets[b]))
    return [by_bucket[b][k : k + batch] for b in order for k in range(0, len(by_bucket[b]), batch)]


def _volume(bucket: Bucket) -> int:
    return bucket.width * bucket.height * max(bucket.frames, 1) + bucket.samples


def decoded(
    plan: Plan, geometry: Geometry, groups: Sequence[Sequence[int]], workers: int | None
) -> Iterator[list[Tensors]]:
    """Each group's tensors, in order, made by worker processes ahead of their use."""
    few = sum(len(g) for g in groups) <= FEW
    count = (0 if few else max(1, min(4, (os.cpu_count() or 2) - 1))) if workers is None else workers
    return ahead(_Groups(plan, geometry, groups), count)


def fill_media(
    cache: Cache, keys: Keys, encoder: Encoder, progress: Progress, batch: int = 4, workers: int | None = None
) -> int:
    """Encode what is missing, in batches of one bucket; returns the bytes written.

    An entry holds "latents", where there is one "mask" [1, h, w] float32 in 0..1 at the latents' size and "control"
    [3, H, W] uint8 (also its "control_latents", for families that look at those), and what the family's `media_cond`
    gave. How items fall into batches changes latents only by
    rounding (about 1e-6 relative in fp32). workers: decoding processes; None: as the machine and the number allow.
    """
    plan = keys.plan
    names = {key: i for i, key in enumerate(keys.all())}
    todo = {names[k]: k for k in cache.missing(names)}
    groups, writer, done = media_groups(plan, todo, batch), Writer(cache), 0
    try:
        for group, tensors in zip(groups, decoded(plan, encoder.geometry, groups, workers), strict=True):
            for i, entry in zip(group, encode(encoder, tensors, plan.fps), strict=True):
                writer.put(todo[i], entry)
            done += len(group)
            progress(done, len(todo), bytes=writer.written * len(todo) // done)
    finally:
        writer.flush()
    return writer.written


def encode(encoder: Encoder, tensors: Sequence[Tensors], fps: float) -> list[Entry]:
    """Cache entries of items of one bucket."""
    media = Media(
        _stack([t.pixels for t in tensors]),
        _stack([t.sound for t in tensors]),
        fps,
        tuple(torch.stack(slot) for slot in zip(*(t.references for t in tensors), strict=True)),
    ).to(encoder.device)
    with torch.no_grad():
        latents = encoder.family.encode_media(encoder.parts, media)
        conds = encoder.family.media_cond(encoder.parts, media)
        controls = _control_latents(encoder, tensors)
    entries: list[Entry] = []
    for one, cond, raw, control in zip(latents.float().cpu(), conds, tensors, controls, strict=True):
        entry: Entry = {"latents": one, **{f"{COND}{k}": v for k, v in cond.items()}}
        if raw.mask is not None:
            entry["mask"] = F.adaptive_avg_pool2d(raw.mask.float() / 255, (one.shape[-2], one.shape[-1]))
        if raw.control is not None:
            entry["control"] = raw.control
        if control is not None:
            entry["control_latents"] = control
        entries.append(entry)
    return entries


def _control_latents(encoder: Encoder, tensors: Sequence[Tensors]) -> Sequence[Tensor | None]:
    """Latents of the control pictures, encoded as any other picture, for families whose networks look at those."""
    made: list[Tensor | None] = [None] * len(tensors)
    there, control = [i for i, t in enumerate(tensors) if t.control is not None], encoder.family.control
    if there and control is not None and control.sees == "latents":
        pictures = torch.stack([t.control for t in tensors if t.control is not None])
        media = Media(pictures.float().div(127.5).sub(1)).to(encoder.device)
        latents = encoder.family.encode_media(encoder.parts, media).float().cpu()
        for i, one in zip(there, latents, strict=True):
            made[i] = one
    return made


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [t for t in tensors if t is not None]
    return torch.stack(there) if there else None


# -- text --------------------------------------------------------------------------------------------------------------


def everything_told(keys: Keys, extra: Iterable[Told] = ()) -> dict[str, Told]:
    """Key → what is told, of every caption of the plan, of the empty caption (for dropout), and of `extra`."""
    plan, reads = keys.plan, keys.family.reads
    found: dict[str, Told] = {}
    if reads:
        for planned in plan:
            for caption in (*planned.item.captions, ""):
                told = keys.told(planned, caption)
                found.setdefault(keys.text(told), told)
    else:
        found = {keys.text(told): told for told in (Told(c) for c in dict.fromkeys(["", *plan.index.texts()]))}
    return {**found, **{keys.text(t): t for t in extra}}


def fill_text(cache: Cache, told: dict[str, Told], encoder: Encoder, progress: Progress, batch: int = 16) -> int:
    """Encode each missing text once; returns the bytes written. An entry is the family's dict of unbatched tensors."""
    todo, writer = cache.missing(told), Writer(cache)
    # prompts that look at pictures of several sizes are not put into one batch
    size = 1 if "references" in encoder.family.reads else batch
    try:
        for start in range(0, len(todo), size):
            group = todo[start : start + size]
            prompts = [_moved(told[k].prompt(), encoder.device) for k in group]
            with torch.no_grad():
                conds: Sequence[Cond] = encoder.family.encode_text(encoder.parts, prompts)
            for key, cond in zip(group, conds, strict=True):
                writer.put(key, cond)
            done = start + len(group)
            progress(done, len(todo), bytes=writer.written * len(todo) // done)
    finally:
        writer.flush()
    return writer.written


def _moved(prompt: Prompt, device: torch.device | str) -> Prompt:
    return Prompt(prompt.text, tuple(r.to(device) for r in prompt.references), prompt.lyrics, prompt.seconds)
