"""Latents and text embeddings on disk, found by what they were made from; safe to delete at any time."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import UserError
from ..family import Family
from ..types import Media, Parts, Prompt
from .buckets import Planned
from .tensor import mask, pixels

FORMAT = 1
"""Raise it whenever decoding, scaling or what an entry holds changes."""

Progress = Callable[[int, int], None]
"""Called with (entries made, entries to make)."""


class Cache:
    """A folder of safetensors files, one per key, each written under another name and then renamed into place."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Where the entry is or would be."""
        return self.root / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether the entry is there and whole; one cut off (by a power failure, say) is deleted."""
        path = self.path(key)
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
                start = file.tell()
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            if path.stat().st_size == start + max(ends):
                return True
        except FileNotFoundError:
            return False
        except (OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError):
            pass
        path.unlink(missing_ok=True)
        return False

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors of an entry, on the CPU. Raises `UserError` when it is gone or damaged."""
        path = self.path(key)
        try:
            return load(path.read_bytes())
        except (OSError, SafetensorError, ValueError):
            path.unlink(missing_ok=True)
            raise UserError(
                f"The cache entry {path} is missing or damaged; start or resume the run again, and it is made anew."
            ) from None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Store tensors (from any device). Raises `UserError` when the disk is full or may not be written to."""
        data = save({k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()})
        path = self.path(key)
        partial = path.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise UserError(_cannot_write(self.root, error)) from error

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those keys that have no whole entry, each once, in order."""
        return [k for k in dict.fromkeys(keys) if not self.has(k)]


def _cannot_write(root: Path, error: OSError) -> str:
    elsewhere = "set the environment variable TUNER_HOME to a folder on another disk"
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return (
            f"There is no space left for the cache {root}; free some (the cache itself may be deleted when no run is "
            f"active), or {elsewhere}, and start again: what is cached stays."
        )
    return (
        f"The cache {root} cannot be written ({error.strerror}); give yourself the right to write it, or {elsewhere}."
    )


@dataclass(frozen=True)
class Encoder:
    """What makes cache entries: a family with its loaded encoders, and a fingerprint of their weights and precision."""

    family: Family
    parts: Parts
    fingerprint: str
    device: torch.device | str = "cpu"


def media_key(planned: Planned, family: Family, fingerprint: str) -> str:
    """The key of a picture's latents (and mask): its bytes, how it is cut, and what encodes it; never its name."""
    item = planned.item
    return _key("media", item.digest, item.mask_digest, asdict(planned.framing), family.name, fingerprint)


def text_key(caption: str, family: Family, fingerprint: str) -> str:
    """The key of a caption's embeddings: its text and what encodes it."""
    return _key("text", caption, family.encode_settings(), family.name, fingerprint)


def media_keys(planned: Sequence[Planned], family: Family, fingerprint: str) -> list[str]:
    """One key per plan, in order."""
    return [media_key(p, family, fingerprint) for p in planned]


def text_keys(captions: Iterable[str], family: Family, fingerprint: str) -> dict[str, str]:
    """Caption → key."""
    return {c: text_key(c, family, fingerprint) for c in captions}


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True, default=repr).encode()).hexdigest()


def fill_media(
    cache: Cache, planned: Sequence[Planned], encoder: Encoder, progress: Progress | None = None, batch: int = 4
) -> list[str]:
    """Encode what is missing, in batches of one size, and return the key of every plan, in order.

    An entry holds "latents" [C, h, w] float32 and, for pictures with a mask, "mask" [1, h, w] float32 in 0..1.
    Pictures are decoded in threads while the batch before is encoded. How pictures fall into batches changes latents
    only by rounding (about 1e-6 relative in fp32).
    """
    keys = media_keys(planned, encoder.family, encoder.fingerprint)
    wanted = set(cache.missing(keys))
    todo = {k: p for k, p in zip(keys, planned, strict=True) if k in wanted}
    done = 0
    for group, stack in _decoded(list(_batches(todo, batch))):
        with torch.no_grad():
            latents = encoder.family.encode_media(encoder.parts, Media(stack.to(encoder.device))).float().cpu()
        for (key, plan), one in zip(group, latents, strict=True):
            entry = {"latents": one}
            if plan.item.mask:
                entry["mask"] = mask(plan, (one.shape[-1], one.shape[-2]))
            cache.put(key, entry)
        done += len(group)
        if progress:
            progress(done, len(todo))
    return keys


def fill_text(
    cache: Cache, captions: Iterable[str], encoder: Encoder, progress: Progress | None = None, batch: int = 16
) -> dict[str, str]:
    """Encode each missing caption once and return caption → key. An entry is the family's dict of unbatched tensors."""
    keys = text_keys(captions, encoder.family, encoder.fingerprint)
    wanted = set(cache.missing(keys.values()))
    todo = [(c, k) for c, k in keys.items() if k in wanted]
    for start in range(0, len(todo), batch):
        group = todo[start : start + batch]
        with torch.no_grad():
            conds = encoder.family.encode_text(encoder.parts, [Prompt(c) for c, _ in group])
        for (_, key), cond in zip(group, conds, strict=True):
            cache.put(key, cond)
        if progress:
            progress(start + len(group), len(todo))
    return keys


Group = list[tuple[str, Planned]]


def _batches(todo: dict[str, Planned], batch: int) -> Iterator[Group]:
    by_size: dict[tuple[int, int], Group] = defaultdict(list)
    for key, plan in todo.items():
        by_size[plan.framing.size].append((key, plan))
    for group in by_size.values():
        for start in range(0, len(group), batch):
            yield group[start : start + batch]


def _decoded(groups: list[Group], ahead: int = 2) -> Iterator[tuple[Group, Tensor]]:
    """Each group with its pixels [B, 3, H, W], `ahead` groups being decoded at a time."""
    waiting: deque[tuple[Group, list[Future[Tensor]]]] = deque()
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode")
    try:
        rest = iter(groups)
        while True:
            while len(waiting) < ahead and (group := next(rest, None)) is not None:
                waiting.append((group, [pool.submit(pixels, plan) for _, plan in group]))
            if not waiting:
                return
            group, futures = waiting.popleft()
            stack = torch.stack([f.result() for f in futures])
            yield group, stack
    finally:
        pool.shutdown(cancel_futures=True)
