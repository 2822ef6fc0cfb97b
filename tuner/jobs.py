"""Slow work beside training that lives in a folder or only fills the cache: `tuner sample` and `tuner cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import assemble, compare, device, prepare
from .console import Console
from .data import fill
from .data.cache import Cache
from .errors import UserError, stop_on_errors
from .home import cache_folder
from .progress import progress
from .recipe import Recipe
from .run import watched


def sample(request: Path, folder: Path) -> int:
    """Draw a comparison grid into `folder`; returns the exit code."""
    wanted = compare.read(request)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be made ({error.strerror}); choose another with --out.") from None
    return watched(folder, lambda say, controls: compare.draw(wanted, folder, say, controls))


def cache(wanted: Recipe) -> int:
    """Encode everything that a recipe needs; returns the exit code."""
    console = Console()

    def say(kind: str, **fields: Any) -> None:
        console({"kind": kind, **fields})

    ready = prepare.prepare(wanted, progress(say, "prepare"))
    for problem in ready.problems:
        if problem.level != "error":
            say(problem.level, text=problem.text)
    stop_on_errors(ready.problems)
    store, dtype = Cache(cache_folder()), device.storage(ready.recipe, ready.device)
    keys, before = assemble.keys_of(ready, dtype), store.size()["bytes"]
    media = assemble.fill_media(ready, store, keys, dtype, say)
    texts, _ = assemble.fill_text(ready, store, keys, dtype, say)
    console.close()
    size = store.size()
    text = (
        f"The cache holds the {media} media entries and {texts} texts of this recipe; {_size(size['bytes'] - before)} "
        f"were added, {_size(size['bytes'])} are on disk in all."
    )
    say("cache", media=media, texts=texts, **size, added=size["bytes"] - before, text=text)
    return 0


def verify() -> int:
    """Read every cache entry and compare it with its checksum; returns the exit code."""
    console = Console()
    told = Cache(cache_folder()).verify(progress(lambda kind, **fields: console({"kind": kind, **fields}), "verify"))
    console.close()
    damaged = len(told["damaged"])
    gone = f"{damaged} damaged shards were deleted and are made anew when needed" if damaged else "none is damaged"
    console({"kind": "cache", **told, "text": f"{told['entries']} cache entries are whole; {gone}."})
    return 0


def prune(kept: list[Recipe], days: float) -> int:
    """Delete the cache entries that none of these recipes needs, in shards not used for some days; the exit code."""
    console, keep = Console(), set()
    for wanted in kept:
        ready = prepare.prepare(wanted)
        stop_on_errors(ready.problems)
        keys = assemble.keys_of(ready, device.storage(ready.recipe, ready.device))
        keep |= set(keys.all())
        keep |= set(fill.everything_told(keys, assemble.told_by_samples(ready, keys)))
    told = Cache(cache_folder()).prune(keep, days)
    text = f"{told['entries']} cache entries were deleted, {_size(told['bytes'])} freed."
    console({"kind": "cache", **told, "text": text})
    return 0


def _size(count: int) -> str:
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= of:
            return f"{count / of:.1f} {unit}"
    return f"{count} bytes"
