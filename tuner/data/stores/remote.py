"""The disk cache of remote bytes: each version of an object is fetched once; the least recently used go first."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import ModuleType

from filelock import FileLock

from ...errors import UserError
from ...home import cache_folder
from . import hub, s3
from .refs import Unreadable, split, stamp

FETCHERS: dict[str, ModuleType] = {"s3": s3, "hf": hub}
LIMIT = "TUNER_REMOTE_CACHE_GB"
FRESH = 30.0
"""Seconds for which an open remote archive or table is not asked for its version again."""

_known: dict[str, tuple[float, str, int]] = {}
"""Remote archives and tables in use: when asked, version, size in bytes (-1: not known)."""


def folder() -> Path:
    """Where remote bytes are kept; safe to delete at any time."""
    return cache_folder() / "remote"


def limit() -> int:
    """Most bytes to keep. Raises `UserError` when the environment variable is no number above 0."""
    text = os.environ.get(LIMIT) or "50"
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e9:
        raise UserError(f"The environment variable {LIMIT} is {text!r}; set it to a number of gigabytes above 0.")
    return int(size * 1e9)


def version(ref: str) -> str:
    """The version of a remote object, asked for now. Raises `Unreadable`."""
    return FETCHERS[split(ref)[0]].facts(ref)[0]


def local(ref: str) -> Path:
    """A local copy of the present version of a remote object. Raises `Unreadable`."""
    return _copy(ref, *FETCHERS[split(ref)[0]].facts(ref))


def held(container: str) -> tuple[Path, str]:
    """(local file, version) of an archive or table; a remote one is asked for its version every `FRESH` seconds."""
    scheme, _, _ = split(container)
    if scheme not in FETCHERS:
        path = Path(container)
        try:
            return path, stamp(path.stat())
        except OSError as error:
            what = f"cannot be opened ({error.strerror}); put it back, or correct the path"
            raise Unreadable(container, what) from None
    then, found, size = _known.get(container, (-FRESH, "", -1))
    if time.monotonic() - then > FRESH:
        found, size = FETCHERS[scheme].facts(container)
        _known[container] = time.monotonic(), found, size
    return _copy(container, found, size), found


def _copy(ref: str, found: str, size: int) -> Path:
    if size > limit():
        what = f"has {size / 1e9:.1f} GB, more than the remote cache may hold; raise the environment variable {LIMIT}"
        raise Unreadable(ref, what)
    return _keep(ref, found, lambda target: FETCHERS[split(ref)[0]].fetch(ref, found, size, target))


def kept(ref: str, found: str, make: Callable[[], bytes]) -> Path:
    """A file in the cache with the bytes of this version of a reference; `make` gives them when they are not there."""
    return _keep(ref, found, lambda target: target.write_bytes(make()))


def _keep(ref: str, found: str, fill: Callable[[Path], object]) -> Path:
    key = hashlib.sha256(f"{ref}\n{found}".encode()).hexdigest()
    ending = PurePosixPath(ref).suffix.lower()
    path = folder() / key[:2] / f"{key}{ending if ending[1:].isalnum() and len(ending) < 9 else ''}"
    if _used(path):
        return path
    try:
        (folder() / "locks").mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder() / "locks" / key[:2]):  # one fetch of an object, however many processes want it
            if not _used(path):
                _write(path, fill)
    except OSError as error:
        what = (
            f"cannot be kept in {folder()} ({error.strerror or error}); free space, or set TUNER_HOME to another disk"
        )
        raise Unreadable(ref, what) from None
    return path


def _write(path: Path, fill: Callable[[Path], object]) -> None:
    handle, name = tempfile.mkstemp(".part", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        fill(partial)
        size = partial.stat().st_size
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _room.added(path, size)


def _used(path: Path) -> bool:
    """Whether the file is there; marks it as just used."""
    try:
        os.utime(path)
    except OSError:
        return False
    return True


class _Room:
    """Keeps the cache below its limit. Other processes write too, so the disk is asked again now and then."""

    def __init__(self) -> None:
        self.lock, self.folder, self.total, self.since = threading.Lock(), Path(), 0, 0

    def added(self, path: Path, size: int) -> None:
        with self.lock:
            most = limit()
            self.total, self.since = self.total + size, self.since + size
            if self.folder != folder() or self.total > most or self.since > most // 20:
                self.folder, self.since = folder(), 0
                self.total = _prune(folder(), most, path)


def _prune(root: Path, most: int, newest: Path) -> int:
    """Delete the least recently used files until nine tenths of `most` bytes are left; returns the bytes kept."""
    files: list[tuple[float, int, Path]] = []
    for path in root.glob("??/*"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            if path.suffix != ".part":
                files.append((stat.st_mtime, stat.st_size, path))
            elif time.time() - stat.st_mtime > 86400:  # left by a process that was killed
                path.unlink()
    for path in root.glob("hub-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 86400:
                shutil.rmtree(path)
    total = sum(size for _, size, _ in files)
    if total <= most:
        return total
    for _, size, path in sorted(files):
        if total <= most * 0.9:
            break
        if path != newest:
            with contextlib.suppress(OSError):
                path.unlink()
                total -= size
    return total


_room = _Room()


def _after_fork() -> None:
    _room.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
