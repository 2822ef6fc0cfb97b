"""Latents and text embeddings on disk, found by what they were made from; safe to delete at any time.

Entries lie in shards: safetensors files of many entries, written under another name, flushed and renamed, and
memory-mapped when read. Beside each shard lies a list of its keys, which can be made again from the shard. A key is a
sha256 in hexadecimal; what it is made of is `keys`' business.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError

Entry = dict[str, Tensor]
OPEN = 64
"""Most shards that are kept mapped at a time."""
SHARD_BYTES, SHARD_ENTRIES, SHARD_SECONDS = 128 << 20, 4096, 60.0
"""A shard is written when it has one of these: at most a minute's work is lost to a kill."""
MAGIC = b"tunerkeys3\0\0"


class Cache:
    """A folder of shards, open to several processes at once. Reading is safe from threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "entries"
        self._lock = Lock()
        self._shards: list[Path] = []
        self._seen: set[str] = set()
        self._high = np.empty(0, np.uint64)
        self._low = np.empty(0, np.uint64)
        self._shard = np.empty(0, np.int32)
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"])

    # -- reading ---------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Learn of shards that were written since the last look; those that are cut off are deleted."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        fresh = sorted(p for p in self.folder.glob("*.safetensors") if p.name not in self._seen)
        columns = [(self._high, self._low, self._shard)]
        for path in fresh:
            self._seen.add(path.name)
            keys = _keys_of(path)
            if keys is None:
                continue
            words = keys[:, :16].copy().view(">u8").astype(np.uint64)
            columns.append((words[:, 0], words[:, 1], np.full(len(words), len(self._shards), np.int32)))
            self._shards.append(path)
        if len(columns) > 1:
            high, low, shard = (np.concatenate(c) for c in zip(*columns, strict=True))
            order = np.argsort(high, kind="stable")
            self._high, self._low, self._shard = high[order], low[order], shard[order]

    def _find(self, key: str) -> int | None:
        """The shard that holds a key."""
        high, low = int(key[:16], 16), int(key[16:32], 16)
        place = int(np.searchsorted(self._high, np.uint64(high)))
        while place < len(self._high) and int(self._high[place]) == high:
            if int(self._low[place]) == low:
                return int(self._shard[place])
            place += 1
        return None

    def has(self, key: str) -> bool:
        """Whether the entry is there and whole."""
        return not self.missing([key])

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those keys that have no whole entry, each once, in order."""
        unique = list(dict.fromkeys(keys))
        with self._lock:
            self._refresh()
            return self._missing(unique) if unique else []

    def _missing(self, unique: list[str]) -> list[str]:
        raw = np.frombuffer(bytes.fromhex("".join(k[:32] for k in unique)), ">u8").reshape(-1, 2).astype(np.uint64)
        place = np.searchsorted(self._high, raw[:, 0])
        inside = np.minimum(place, max(len(self._high) - 1, 0))
        there = np.zeros(len(unique), bool)
        if len(self._high):
            there = (self._high[inside] == raw[:, 0]) & (self._low[inside] == raw[:, 1]) & (place < len(self._high))
        # two keys that share eight bytes are next to each other: looked at one by one
        return [k for k, found in zip(unique, there, strict=True) if not found and self._find(k) is None]

    def get(self, key: str) -> Entry:
        """The tensors of an entry, memory-mapped: they must not be changed. Raises `UserError` when it is gone."""
        with self._lock:
            for look_again in (self._refresh, None):
                while (shard := self._find(key)) is not None:
                    try:
                        opened, names = self._opened(shard)
                        return {name: opened.get_tensor(f"{key}/{name}") for name in names[key]}
                    except (OSError, SafetensorError, KeyError):  # damaged, or pruned: another shard may hold it
                        self._forget(shard)
                if look_again:
                    look_again()
        raise UserError(
            f"The cache entry {key[:12]} in {self.folder} is missing or damaged; start or resume the run again, and it "
            "is made anew."
        )

    def _forget(self, shard: int) -> None:
        others = self._shard != shard
        self._high, self._low, self._shard = self._high[others], self._low[others], self._shard[others]
        self._open.pop(shard, None)

    def _opened(self, shard: int) -> tuple[Any, dict[str, list[str]]]:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        opened = safe_open(self._shards[shard], "pt")
        names: dict[str, list[str]] = {}
        for full in opened.keys():  # noqa: SIM118  (no dict)
            key, _, name = full.partition("/")
            names.setdefault(key, []).append(name)
        self._open[shard] = (opened, names)
        while len(self._open) > OPEN:
            self._open.popitem(last=False)
        return self._open[shard]

    # -- writing ---------------------------------------------------------------------------------------------------

    def put(self, key: str, tensors: Entry) -> None:
        """Store one entry in a shard of its own. Raises `UserError` when the disk is full or may not be written to."""
        writer = Writer(self)
        writer.put(key, tensors)
        writer.flush()

    def write(self, entries: dict[str, Entry]) -> Path:
        """Write entries as one shard, which appears whole or not at all."""
        flat = {f"{k}/{n}": _plain(t) for k, e in entries.items() for n, t in e.items()}
        sums = {k: _sum({n: flat[f"{k}/{n}"] for n in e}) for k, e in entries.items()}
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(flat, partial, {"keys": json.dumps(sums)})
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
            _write_keys(path, list(entries))
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise UserError(_cannot_write(self.root, error)) from error
        return path

    # -- care ------------------------------------------------------------------------------------------------------

    def size(self) -> dict[str, int]:
        """{"entries", "shards", "bytes"} on disk."""
        self.refresh()
        sizes = [_size(f) for f in self.folder.glob("*.safetensors")]
        return {"entries": len(self._high), "shards": len(sizes), "bytes": sum(sizes)}

    def verify(self, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
        """Read every entry and compare it with its checksum; damaged shards are deleted and made anew when needed.

        Returns {"entries": good ones, "damaged": names of shards}.
        """
        good, damaged, files = 0, [], sorted(self.folder.glob("*.safetensors"))
        for done, path in enumerate(files, 1):
            count = _verified(path)
            if count is None:
                damaged.append(path.name)
                _remove(path)
            else:
                good += count
            if progress:
                progress(done, len(files))
        self.__init__(self.root)
        return {"entries": good, "damaged": damaged}

    def prune(self, keep: set[str] | None = None, older: float = 0.0) -> dict[str, int]:
        """Delete what interrupted writes left, and the entries that are not wanted any more.

        keep: keys that stay whatever their age; None keeps all. older: only shards not used for so many days are
        looked at. A shard of which some entries stay is written again without the others. Returns
        {"entries": deleted ones, "bytes": freed}.
        """
        before, deleted = self.size()["bytes"], 0
        self._sweep()
        if keep is None:
            return {"entries": 0, "bytes": 0}
        for path in sorted(self.folder.glob("*.safetensors")):
            if _age(path) >= older * 86400 and _keys_of(path) is not None:
                deleted += self._thin(path, keep)
        self.__init__(self.root)
        return {"entries": deleted, "bytes": max(0, before - self.size()["bytes"])}

    def _sweep(self) -> None:
        """Delete files that interrupted writes and deletions left."""
        for partial in self.folder.glob("*.tmp"):
            if _age(partial) > 3600:
                partial.unlink(missing_ok=True)
        for keys in self.folder.glob("*.keys"):
            if not keys.with_suffix(".safetensors").exists():
                keys.unlink(missing_ok=True)

    def _thin(self, path: Path, keep: set[str]) -> int:
        """Write a shard again with only what is wanted; returns the number of entries that are gone."""
        kept: dict[str, Entry] = {}
        with safe_open(path, "pt") as file:
            names = [full.partition("/") for full in file.keys()]  # noqa: SIM118
            held = {key for key, _, _ in names}
            if held <= keep:
                return 0
            for key, _, name in names:
                if key in keep:
                    kept.setdefault(key, {})[name] = file.get_tensor(f"{key}/{name}")
            if kept:
                self.write(kept)
        _remove(path)
        return len(held - keep)

    def used(self, keys: Sequence[str]) -> None:
        """Note that these entries were used today, for `prune`."""
        for shard in {s for k in keys if (s := self._find(k)) is not None}:
            with contextlib.suppress(OSError):
                os.utime(self._shards[shard])


@dataclass
class Writer:
    """Gathers entries into shards. Call `flush` at the end, also after an error: what is encoded is kept."""

    cache: Cache
    written: int = 0
    _entries: dict[str, Entry] = field(default_factory=dict)
    _bytes: int = 0
    _began: float = field(default_factory=time.monotonic)

    def put(self, key: str, tensors: Entry) -> None:
        """Add an entry (from any device); now and then a shard is written."""
        entry = {name: _plain(t) for name, t in tensors.items()}
        self._entries[key] = entry
        size = sum(t.nbytes for t in entry.values())
        self._bytes += size
        self.written += size
        full = self._bytes >= SHARD_BYTES or len(self._entries) >= SHARD_ENTRIES
        if full or time.monotonic() - self._began > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered."""
        entries, self._entries, self._bytes, self._began = self._entries, {}, 0, time.monotonic()
        if entries:
            self.cache.write(entries)


def _plain(tensor: Tensor) -> Tensor:
    """A copy on the CPU: the caller may change its own, and safetensors refuses tensors that share memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())


def _sum(entry: Entry) -> str:
    """A checksum of the tensors with their names, types and shapes."""
    total = 0
    for name in sorted(entry):
        tensor = entry[name]
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        flat = tensor.contiguous().reshape(-1)
        total = zlib.crc32(flat.view(torch.uint8).numpy().data if flat.numel() else b"", total)
    return f"{total:08x}"


def _age(path: Path) -> float:
    """Seconds since the last use; none of a file that another process deleted."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _keys_of(path: Path) -> np.ndarray | None:
    """The keys of a shard: uint8 [N, 32]; from its list, or from itself. None, and it is gone, when it is cut off."""
    with contextlib.suppress(OSError):
        data = path.with_suffix(".keys").read_bytes()
        if len(data) >= 32 and data[:32] == _head(path, data[32:]):
            return np.frombuffer(data, np.uint8, offset=32).reshape(-1, 32)
    try:
        with safe_open(path, "pt") as file:
            keys = list(dict.fromkeys(full.partition("/")[0] for full in file.keys()))  # noqa: SIM118
        data = bytes.fromhex("".join(keys))
    except OSError:  # pruned by another process, or not to be read for now
        return None
    except (SafetensorError, ValueError):
        _remove(path)
        return None
    _write_keys(path, keys)
    return np.frombuffer(data, np.uint8).reshape(-1, 32)


def _head(path: Path, keys: bytes) -> bytes:
    """32 bytes before the keys of a shard: a mark, the shard's size, the number of keys, their checksum."""
    numbers = ((path.stat().st_size, 8), (len(keys) // 32, 8), (zlib.crc32(keys), 4))
    return MAGIC + b"".join(value.to_bytes(size, "little") for value, size in numbers)


def _write_keys(path: Path, keys: Sequence[str]) -> None:
    """The list beside a shard. It only saves time: where it cannot be written, it is done without."""
    data = bytes.fromhex("".join(keys))
    partial = path.with_suffix(f".{uuid.uuid4().hex}.keys.tmp")
    try:
        partial.write_bytes(_head(path, data) + data)
        os.replace(partial, path.with_suffix(".keys"))
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _verified(path: Path) -> int | None:
    """Number of entries of a shard, None when one differs from its checksum. Raises `UserError`: not to be read."""
    try:
        with safe_open(path, "pt") as file:
            sums = json.loads((file.metadata() or {})["keys"])
            entries: dict[str, Entry] = {key: {} for key in sums}
            for full in file.keys():  # noqa: SIM118
                key, _, name = full.partition("/")
                entries[key][name] = file.get_tensor(full)
            return len(sums) if all(_sum(entries[k]) == s for k, s in sums.items()) else None
    except FileNotFoundError:  # pruned by another process
        return 0
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"The cache shard {path} cannot be read ({why}); give yourself the right to, or delete it."
        ) from None
    except (SafetensorError, KeyError, ValueError, AttributeError):
        return None


def _remove(path: Path) -> None:
    for name in (path, path.with_suffix(".keys")):
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)


def _cannot_write(root: Path, error: Exception) -> str:
    elsewhere = "set the environment variable TUNER_HOME to a folder on another disk"
    full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or "No space left" in str(error)
    if full or "os error 28" in str(error):
        return (
            f"There is no space left for the cache {root}; free some (the cache itself may be deleted when no run is "
            f"active), or {elsewhere}, and start again: what is cached stays."
        )
    reason = getattr(error, "strerror", None) or error
    return f"The cache {root} cannot be written ({reason}); give yourself the right to write it, or {elsewhere}."
